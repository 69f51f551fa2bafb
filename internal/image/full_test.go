package image

import (
	"crypto/rand"
	"strings"
	"syscall"
	"testing"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/testenv"
)

// A full disk stops a pull with a clear error, and the engine goes on: what is
// there can be listed and deleted, and with room again the pull works.
func TestFullDisk(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=12m"); err != nil {
		t.Skipf("no tmpfs here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	noise := make([]byte, 9<<20)
	rand.Read(noise)
	small := sample()
	big := makeImage(ocispec.Image{}, tarOf(file{name: "a", body: "a"}), tarOf(file{name: "noise", body: string(noise)}))
	smallHost, bigHost := serve(t, &fake{m: small}), serve(t, &fake{m: big})
	e := open(t, dir)
	t.Cleanup(e.stop) // before the unmount
	if _, _, err := e.pull(smallHost + "/s:v1"); err != nil {
		t.Fatal(err)
	}
	_, _, err := e.pull(bigHost + "/b:v1")
	if !errdefs.Is(err, errdefs.Exhausted) || !strings.Contains(err.Error(), bigHost+"/b:v1") || errdefs.HintOf(err) == "" {
		t.Errorf("kind %v, hint %q: %v", errdefs.KindOf(err), errdefs.HintOf(err), err)
	}
	for _, r := range e.residue() {
		if !strings.HasPrefix(r, "partial ") {
			t.Errorf("left: %s", r)
		}
	}
	if _, err := e.Remove(t.Context(), smallHost+"/s:v1", RemoveOptions{}); err != nil {
		t.Errorf("remove on a full disk: %v", err)
	}
	if n := e.DropPartials(); n == 0 {
		t.Error("no partial blob was dropped")
	}
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.pull(bigHost + "/b:v1"); err != nil {
		t.Errorf("with room again: %v", err)
	}
}
