package devicefilter

import (
	"fmt"
	"math/rand/v2"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func n(v int64) *int64 { return &v }

// reference says what the rules mean, one kind of access at a time.
func reference(rules []specs.LinuxDeviceCgroup, kind, acc, maj, min uint32) bool {
	for _, bit := range []uint32{Mknod, Read, Write} {
		if acc&bit == 0 {
			continue
		}
		allowed := false
		for _, r := range rules {
			bits, _ := access(r.Access)
			about := (r.Type == "" || r.Type == "a" || r.Type == "b" && kind == Block || r.Type == "c" && kind == Char) &&
				(r.Major == nil || *r.Major == -1 || uint32(*r.Major) == maj) &&
				(r.Minor == nil || *r.Minor == -1 || uint32(*r.Minor) == min)
			if about && bits&bit != 0 {
				allowed = r.Allow
			}
		}
		if !allowed {
			return false
		}
	}
	return true
}

func randomRules(r *rand.Rand) []specs.LinuxDeviceCgroup {
	var out []specs.LinuxDeviceCgroup
	for range r.IntN(12) {
		num := func() *int64 {
			switch r.IntN(4) {
			case 0:
				return nil
			case 1:
				return n(-1)
			}
			return n(int64(r.IntN(3)))
		}
		out = append(out, specs.LinuxDeviceCgroup{
			Allow: r.IntN(2) == 0, Type: []string{"", "a", "b", "c"}[r.IntN(4)],
			Major: num(), Minor: num(), Access: []string{"", "r", "w", "m", "rw", "rm", "wm", "rwm"}[r.IntN(8)],
		})
	}
	return out
}

func TestProgramSaysWhatTheRulesSay(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		rules := randomRules(r)
		compare(t, rules)
	}
}

func compare(t *testing.T, rules []specs.LinuxDeviceCgroup) {
	t.Helper()
	p, err := Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []uint32{Block, Char} {
		for acc := uint32(1); acc <= allAccess; acc++ {
			for maj := range uint32(4) {
				for min := range uint32(4) {
					got, err := p.Run(kind, acc, maj, min)
					if err != nil {
						t.Fatal(err)
					}
					if want := reference(rules, kind, acc, maj, min); got != want {
						t.Fatalf("device %d %d:%d access %d: program says %v, the rules say %v\n%+v", kind, maj, min, acc, got, want, rules)
					}
				}
			}
		}
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		compare(t, randomRules(rand.New(rand.NewPCG(a, b))))
	})
}

func TestBadRules(t *testing.T) {
	for _, r := range []specs.LinuxDeviceCgroup{
		{Type: "x"}, {Access: "rx"}, {Type: "c", Major: n(-2)}, {Type: "c", Minor: n(1 << 33)},
	} {
		if _, err := Compile([]specs.LinuxDeviceCgroup{r}); err == nil {
			t.Errorf("%+v was taken", r)
		} else {
			t.Log(err)
		}
	}
	if _, err := Compile(make([]specs.LinuxDeviceCgroup, maxRules+1)); err == nil {
		t.Error("too many rules were taken")
	}
}

func TestProgramIsSmall(t *testing.T) {
	rules := []specs.LinuxDeviceCgroup{{Access: "rwm"}}
	for i := range int64(11) {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: n(1), Minor: n(i), Access: "rwm"})
	}
	p, err := Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	if p.Len() > 70 {
		t.Errorf("%d instructions for %d rules", p.Len(), len(rules))
	}
}

func ExampleCompile() {
	p, _ := Compile([]specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Major: n(1), Minor: n(3), Access: "rw"},
	})
	null, _ := p.Run(Char, Read|Write, 1, 3)
	mknod, _ := p.Run(Char, Mknod, 1, 3)
	disk, _ := p.Run(Block, Read, 8, 0)
	fmt.Println(null, mknod, disk)
	// Output: true false false
}
