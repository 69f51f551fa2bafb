package seccomp

import (
	"runtime"
	"sort"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// syscall is one row of the table: the numbers of a call.
type syscall struct {
	name string
	nr   [columns]int16
}

// An arch is one way of calling the kernel.
type arch struct {
	name   specs.Arch
	audit  uint32 // AUDIT_ARCH_*, as the kernel tells filters
	column int
	bits   int
	mode   uint32 // added to every number: how x32 differs from x86_64
	first  uint32 // the lowest number
	// mux is set where socketcall(2) and ipc(2) stand for many calls.
	mux bool
}

// The parts of AUDIT_ARCH_*: the machine's ELF number and two bits.
const (
	audit64 = 0x80000000
	auditLE = 0x40000000

	x32Bit     = 0x40000000
	armPrivNr  = 0xf0001
	mipsN32Bit = 0x20000000
)

var arches = [...]arch{
	{name: specs.ArchX86_64, audit: 62 | audit64 | auditLE, column: colAMD64, bits: 64},
	{name: specs.ArchX86, audit: 3 | auditLE, column: colI386, bits: 32, mux: true},
	{name: specs.ArchX32, audit: 62 | audit64 | auditLE, column: colX32, bits: 32, mode: x32Bit},
	{name: specs.ArchARM, audit: 40 | auditLE, column: colARM, bits: 32},
	{name: specs.ArchAARCH64, audit: 183 | audit64 | auditLE, column: colARM64, bits: 64},
	{name: specs.ArchRISCV64, audit: 243 | audit64 | auditLE, column: colRISCV64, bits: 64},
	{name: specs.ArchPPC64LE, audit: 21 | audit64 | auditLE, column: colPPC64, bits: 64, mux: true},
	{name: specs.ArchPPC64, audit: 21 | audit64, column: colPPC64, bits: 64, mux: true},
	{name: specs.ArchPPC, audit: 20, column: colPPC, bits: 32, mux: true},
	{name: specs.ArchS390X, audit: 22 | audit64, column: colS390X, bits: 64, mux: true},
	{name: specs.ArchLOONGARCH64, audit: 258 | audit64 | auditLE, column: colLOONG64, bits: 64},
	{name: specs.ArchMIPS, audit: 8, column: colMIPS, bits: 32, first: 4000, mux: true},
	{name: specs.ArchMIPSEL, audit: 8 | auditLE, column: colMIPS, bits: 32, first: 4000, mux: true},
	{name: specs.ArchMIPS64, audit: 8 | audit64, column: colMIPS64, bits: 64, first: 5000},
	{name: specs.ArchMIPSEL64, audit: 8 | audit64 | auditLE, column: colMIPS64, bits: 64, first: 5000},
}

// foreign reports whether a is an architecture that a profile may name and that
// we have no numbers for. None of the machines that Onggi runs on can call by
// it, and a filter treats it as any architecture that is not listed.
func foreign(a specs.Arch) bool {
	switch a {
	case specs.ArchMIPS64N32, specs.ArchMIPSEL64N32, specs.ArchS390, specs.ArchPARISC, specs.ArchPARISC64,
		specs.ArchM68K, specs.ArchSH, specs.ArchSHEB:
		return true
	}
	return false
}

func archByName(name specs.Arch) *arch {
	for i := range arches {
		if arches[i].name == name {
			return &arches[i]
		}
	}
	return nil
}

// native is the architecture of this program.
func native() *arch { return archByName(archOfGo(runtime.GOARCH)) }

// archOfGo is the architecture in Go's words.
func archOfGo(goarch string) specs.Arch {
	switch goarch {
	case "amd64":
		return specs.ArchX86_64
	case "386":
		return specs.ArchX86
	case "arm":
		return specs.ArchARM
	case "arm64":
		return specs.ArchAARCH64
	case "riscv64":
		return specs.ArchRISCV64
	case "ppc64le":
		return specs.ArchPPC64LE
	case "ppc64":
		return specs.ArchPPC64
	case "s390x":
		return specs.ArchS390X
	case "loong64":
		return specs.ArchLOONGARCH64
	case "mips":
		return specs.ArchMIPS
	case "mipsle":
		return specs.ArchMIPSEL
	case "mips64":
		return specs.ArchMIPS64
	case "mips64le":
		return specs.ArchMIPSEL64
	}
	return ""
}

// lookup finds a call by name, nil if no architecture has it.
func lookup(name string) *syscall {
	i := sort.Search(len(syscalls), func(i int) bool { return syscalls[i].name >= name })
	if i < len(syscalls) && syscalls[i].name == name {
		return &syscalls[i]
	}
	return nil
}

// number is the call's own number on a.
func (a *arch) number(name string, s *syscall) (uint32, bool) {
	if s != nil && s.nr[a.column] >= 0 {
		return uint32(s.nr[a.column]), true
	}
	if a.column == colARM {
		for i, n := range armPrivate {
			if n == name {
				return armPrivNr + uint32(i), true
			}
		}
	}
	return 0, false
}

// muxed finds the common call, and the code in its first argument, by which
// name is called where it has, or had, no number of its own.
func (a *arch) muxed(name string) (nr, code uint32, ok bool) {
	if !a.mux {
		return 0, 0, false
	}
	common := "socketcall"
	if code = socketcall(name); code == 0 {
		common, code = "ipc", ipc(name)
	}
	if code == 0 {
		return 0, 0, false
	}
	nr, ok = a.number(common, lookup(common))
	return nr, code, ok
}

func socketcall(name string) uint32 {
	switch name {
	case "socket":
		return 1
	case "bind":
		return 2
	case "connect":
		return 3
	case "listen":
		return 4
	case "accept":
		return 5
	case "getsockname":
		return 6
	case "getpeername":
		return 7
	case "socketpair":
		return 8
	case "send":
		return 9
	case "recv":
		return 10
	case "sendto":
		return 11
	case "recvfrom":
		return 12
	case "shutdown":
		return 13
	case "setsockopt":
		return 14
	case "getsockopt":
		return 15
	case "sendmsg":
		return 16
	case "recvmsg":
		return 17
	case "accept4":
		return 18
	case "recvmmsg":
		return 19
	case "sendmmsg":
		return 20
	}
	return 0
}

func ipc(name string) uint32 {
	switch name {
	case "semop":
		return 1
	case "semget":
		return 2
	case "semctl":
		return 3
	case "semtimedop":
		return 4
	case "msgsnd":
		return 11
	case "msgrcv":
		return 12
	case "msgget":
		return 13
	case "msgctl":
		return 14
	case "shmat":
		return 21
	case "shmdt":
		return 22
	case "shmget":
		return 23
	case "shmctl":
		return 24
	}
	return 0
}
