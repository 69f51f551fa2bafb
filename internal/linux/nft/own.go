package nft

import (
	"encoding/binary"

	"github.com/mdlayher/netlink"
)

// Numbers of linux/netfilter/nfnetlink.h and nf_tables.h.
const (
	groupNftables  = 7
	subsystem      = 10
	batchBegin     = 0x10
	batchEnd       = 0x11
	msgNewTable    = 0
	attrTable      = 1 // the table's name, in messages of every kind
	attrTableFlags = 2
	flagOwner      = 0x2 // nobody but the socket that made it changes it
	flagPersist    = 0x4 // and it stays when that is closed (Linux 6.9)
	familyINet     = 1
)

// claim makes an owned table, or takes over one whose owner has ended. The
// nftables module knows no flags of tables: this one transaction is ours.
func claim(c *netlink.Conn, name string) error {
	e := netlink.NewAttributeEncoder()
	e.String(attrTable, name)
	e.ByteOrder = binary.BigEndian
	e.Uint32(attrTableFlags, flagOwner|flagPersist)
	attrs, err := e.Encode()
	if err != nil {
		return err
	}
	head := func(family byte, id uint16) []byte { return binary.BigEndian.AppendUint16([]byte{family, 0}, id) }
	message := func(kind netlink.HeaderType, flags netlink.HeaderFlags, data []byte) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request | flags}, Data: data}
	}
	_, err = c.SendMessages([]netlink.Message{
		message(batchBegin, 0, head(0, subsystem)),
		message(subsystem<<8|msgNewTable, netlink.Create|netlink.Acknowledge, append(head(familyINet, 0), attrs...)),
		message(batchEnd, 0, head(0, subsystem)),
	})
	if err == nil {
		_, err = c.Receive()
	}
	return err
}
