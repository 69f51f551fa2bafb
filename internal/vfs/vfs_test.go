package vfs

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"
)

// The exact order of disk operations is the contract, so the test is its transcript.
func TestWriteFileTranscript(t *testing.T) {
	var got strings.Builder
	h := Hook{NewMem(), func(op string) error { got.WriteString(op + "\n"); return nil }}
	if err := WriteFile(h, "state", []byte("v1")); err != nil {
		t.Fatal(err)
	}
	const want = "create state.tmp\ntruncate state.tmp\nwrite state.tmp\nsync state.tmp\nrename state.tmp state\nsync .\n"
	if got.String() != want {
		t.Errorf("got:\n%swant:\n%s", got.String(), want)
	}
}

// Cut the power before every operation in turn, and keep what luck keeps: the
// reader sees old or new, never neither.
func TestWriteFileCrash(t *testing.T) {
	for n := 0; ; n++ {
		done := false
		for seed := range uint64(20) {
			mem := NewMem()
			if err := WriteFile(mem, "state", []byte("old")); err != nil {
				t.Fatal(err)
			}
			err := WriteFile(Hook{mem, FailAt(n, ErrPowerCut)}, "state", []byte("new"))
			b, rerr := ReadFile(mem.Crash(seed), "state", 10)
			if rerr != nil || string(b) != "old" && string(b) != "new" {
				t.Fatalf("cut before operation %d, seed %d: read %q, %v", n, seed, b, rerr)
			}
			if err == nil {
				if string(b) != "new" {
					t.Fatalf("WriteFile returned nil but %q is on disk", b)
				}
				done = true
			}
		}
		if done {
			return
		}
	}
}

// Both file systems do the same.
func TestFileSystemsAgree(t *testing.T) {
	for name, f := range map[string]FS{"dir": Dir(t.TempDir()), "mem": NewMem(), "hook": Hook{NewMem(), func(string) error { return nil }}} {
		t.Run(name, func(t *testing.T) {
			if _, err := f.Open("none"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("open of a missing file: %v", err)
			}
			if err := f.Mkdir("a/b"); err != nil {
				t.Fatal(err)
			}
			if err := f.Mkdir("a/b"); err != nil {
				t.Errorf("mkdir again: %v", err)
			}
			w, err := f.Create("a/b/c")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.WriteAt([]byte("xyz"), 4); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(w.Allocate(1<<20), w.Sync(), w.Truncate(6), w.Close()); err != nil {
				t.Fatal(err)
			}
			if st, err := f.Stat("a/b/c"); err != nil || st.Size != 6 {
				t.Errorf("stat: %+v, %v", st, err)
			}
			if b, err := ReadFile(f, "a/b/c", 6); err != nil || string(b) != "\x00\x00\x00\x00xy" {
				t.Errorf("read %q, %v", b, err)
			}
			if _, err := ReadFile(f, "a/b/c", 5); !errors.Is(err, syscall.EFBIG) {
				t.Errorf("read of a large file: %v", err)
			}
			if err := f.Rename("a/b/c", "a/d"); err != nil {
				t.Fatal(err)
			}
			if names, err := f.ReadDir("a"); err != nil || strings.Join(names, " ") != "b d" {
				t.Errorf("readdir: %v, %v", names, err)
			}
			if err := f.Remove("a"); !errors.Is(err, syscall.ENOTEMPTY) {
				t.Errorf("remove of a full directory: %v", err)
			}
			l, err := f.Lock("lock")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Lock("lock"); !errors.Is(err, ErrLocked) {
				t.Errorf("second lock: %v", err)
			}
			l.Close()
			if l, err := f.Lock("lock"); err != nil {
				t.Errorf("lock after unlock: %v", err)
			} else {
				l.Close()
			}
			if err := errors.Join(f.Remove("a/d"), f.SyncDir("a"), f.SyncDir(".")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMemIsFull(t *testing.T) {
	m := NewMem()
	m.Capacity = 100
	f, _ := m.Create("f")
	if err := f.Allocate(60); err != nil {
		t.Fatal(err)
	}
	g, _ := m.Create("g")
	if n, err := g.WriteAt(make([]byte, 50), 0); n != 40 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("wrote %d, %v", n, err)
	}
	if _, err := f.WriteAt(make([]byte, 60), 0); err != nil {
		t.Errorf("allocated space is not there: %v", err)
	}
	if err := f.Allocate(61); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("allocate: %v", err)
	}
	m.Remove("g")
	if _, err := f.WriteAt(make([]byte, 100), 0); err != nil {
		t.Errorf("after a removal: %v", err)
	}
}
