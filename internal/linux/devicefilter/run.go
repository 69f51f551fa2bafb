package devicefilter

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Run gives the program's verdict on a use of a device: the kind of device and
// of access as the kernel would say them.
func (p *Program) Run(kind, access, maj, min uint32) (bool, error) {
	var mem [12]byte
	binary.NativeEndian.PutUint32(mem[0:], kind|access<<16)
	binary.NativeEndian.PutUint32(mem[4:], maj)
	binary.NativeEndian.PutUint32(mem[8:], min)
	var reg [10]uint64
	n := p.Len()
	for pc := 0; pc < n; pc++ {
		in := p.code[pc*8:]
		dst, src := in[1]&15, in[1]>>4
		off := int16(binary.NativeEndian.Uint16(in[2:]))
		imm := binary.NativeEndian.Uint32(in[4:])
		switch in[0] {
		case unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W:
			if src != ctx || off < 0 || int(off) > len(mem)-4 {
				return false, fmt.Errorf("instruction %d reads outside its context", pc)
			}
			reg[dst] = uint64(binary.NativeEndian.Uint32(mem[off:]))
		case unix.BPF_ALU | opMov | unix.BPF_X:
			reg[dst] = uint64(uint32(reg[src]))
		case unix.BPF_ALU | opMov | unix.BPF_K:
			reg[dst] = uint64(imm)
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			reg[dst] = uint64(uint32(reg[dst]) & imm)
		case unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K:
			reg[dst] = uint64(uint32(reg[dst]) >> imm)
		case jmp32 | opJne | unix.BPF_K:
			if uint32(reg[dst]) != imm {
				pc += int(off)
			}
		case jmp32 | unix.BPF_JEQ | unix.BPF_K:
			if uint32(reg[dst]) == imm {
				pc += int(off)
			}
		case unix.BPF_JMP | opExit:
			return reg[verdict] == 1, nil
		default:
			return false, fmt.Errorf("instruction %d has the unknown code %#x", pc, in[0])
		}
	}
	return false, fmt.Errorf("the program does not end")
}
