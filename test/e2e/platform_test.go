package e2e

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/testenv"
)

// Steps for another processor run where the kernel knows an emulator for it, and
// elsewhere say what to install.
func TestBuildForAnotherProcessor(t *testing.T) {
	qemu := testenv.NeedProgram(t, "qemu-aarch64-static")
	e := newEngine(t)
	dir := t.TempDir()
	write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY --chmod=755 hello /\nRUN [\"/hello\"]\nCMD [\"/hello\"]\n", "hello": armHello("hello from arm64\n")})
	build := []string{"build", "--progress", "plain", "--platform", "linux/arm64", "-t", "arm", dir}

	formats := t.TempDir()
	if err := unix.Mount("none", formats, "binfmt_misc", 0, ""); err != nil {
		t.Skip("no binfmt_misc in this kernel: ", err)
	}
	t.Cleanup(func() { unix.Unmount(formats, 0) })
	if others, _ := filepath.Glob(filepath.Join(formats, "*aarch64*")); len(others) == 0 {
		e.refuse(1, []string{"exec format error", "qemu-user-static"}, build...)
		const name = "onggi-test-aarch64"
		rule := `:` + name + `:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:` + qemu + `:F`
		if err := os.WriteFile(filepath.Join(formats, "register"), []byte(rule), 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.WriteFile(filepath.Join(formats, name), []byte("-1"), 0) })
	}
	if r := e.try(build...); r.code != 0 || !bytes.Contains([]byte(r.err), []byte("hello from arm64")) {
		t.Errorf("exit %d\n%s", r.code, r.err)
	}
	equal(t, e.do("image", "inspect", "-f", "{{.Architecture}}", "arm"), "arm64")
	equal(t, e.do("run", "--rm", "--platform", "linux/arm64", "arm"), "hello from arm64")
}

// armHello is a program for Linux on arm64 that says something, without a
// compiler: write(1, text, length), exit(0).
func armHello(text string) string {
	code := []uint32{
		0xd2800020,                         // mov x0, #1
		0x100000e1,                         // adr x1, text
		0xd2800002 | uint32(len(text))<<5,  // mov x2, #length
		0xd2800808, 0xd4000001, 0xd2800000, // mov x8, #64; svc #0; mov x0, #0
		0xd2800ba8, 0xd4000001, // mov x8, #93; svc #0
	}
	const head, base = 64 + 56, 0x400000
	size := uint64(head + 4*len(code) + len(text))
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + string(make([]byte, 9)))
	for _, v := range []any{
		[]uint16{2, 183}, []uint32{1}, []uint64{base + head, 64, 0}, []uint32{0}, []uint16{64, 56, 1, 0, 0, 0},
		[]uint32{1, 5}, []uint64{0, base, base, size, size, 0x1000}, code,
	} {
		binary.Write(&b, binary.LittleEndian, v)
	}
	return b.String() + text
}
