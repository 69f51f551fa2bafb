package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/onggi/onggi/internal/linux"
)

// RedirectNames sends what is asked of port 53 of a loopback address in a network
// namespace to another port there, so that port 53 is left to the container.
func RedirectNames(ns *os.File, at netip.AddrPort) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(linux.RawFD(ns))))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	f := familyOf(at.Addr())
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "onggi-names"}
	// Deleting what is not there is an error, adding what is there is none.
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	b := &ruleset{c: c, table: table}
	out := b.base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, -100)
	for _, proto := range []byte{17, 6} {
		b.rule(out, f.is(), []expr.Any{f.load(f.daddrOff, 1), eq(1, at.Addr().AsSlice()), meta(expr.MetaKeyL4PROTO, 1), eq(1, []byte{proto}), destPort(1), eq(1, []byte{0, 53}),
			&expr.Immediate{Register: 1, Data: at.Addr().AsSlice()}, &expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, at.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: f.protoConst, RegAddrMin: 1, RegProtoMin: 2, Specified: true}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: redirect name servers of a container: %w", err)
	}
	return nil
}
