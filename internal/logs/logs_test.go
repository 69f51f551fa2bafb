package logs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 123456700, time.UTC)

func newLog(t testing.TB, s Spec) (*Writer, Spec) {
	t.Helper()
	if s.Path == "" {
		s.Path = filepath.Join(t.TempDir(), "c-json.log")
	}
	w, err := OpenWriter(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w, s
}

// write feeds p as a stream of its own, its end included.
func write(w *Writer, at time.Time, s Stream, p []byte) {
	for len(p) > 0 {
		n := Cut(p, true)
		w.Offset()
		w.Write(at, s, p[:n])
		p = p[n:]
	}
}

func collect(t testing.TB, s Spec, o ReadOptions) []string {
	t.Helper()
	var got []string
	err := Read(context.Background(), s, o, func(e Entry) error {
		got = append(got, string(e.Line))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestFormatIsDockers(t *testing.T) {
	w, s := newLog(t, Spec{Attrs: map[string]string{"tag": `a"b`, "env": "x"}})
	write(w, noon, Stdout, []byte("plain\n"))
	write(w, noon, Stderr, []byte("<a href=\"x\">\\&\t\r\x00\x7f \xff € \u2028\n"))
	write(w, noon, Stdout, []byte("no newline"))
	write(w, noon.In(time.FixedZone("", 3600)).Truncate(time.Second), Stdout, []byte("\n"))
	got, err := os.ReadFile(s.Path)
	if err != nil {
		t.Fatal(err)
	}
	attrs := `,"attrs":{"env":"x","tag":"a\"b"}`
	want := `{"log":"plain\n","stream":"stdout"` + attrs + `,"time":"2026-01-02T12:00:00.1234567Z"}
{"log":"\u003ca href=\"x\"\u003e\\\u0026\u0009\r\u0000` + "\x7f" + ` \ufffd € \u2028\n","stream":"stderr"` + attrs + `,"time":"2026-01-02T12:00:00.1234567Z"}
{"log":"no newline","stream":"stdout"` + attrs + `,"time":"2026-01-02T12:00:00.1234567Z"}
{"log":"\n","stream":"stdout"` + attrs + `,"time":"2026-01-02T12:00:00Z"}
`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestLongLinesAreSplit(t *testing.T) {
	w, s := newLog(t, Spec{})
	for _, n := range []int{MaxLine - 1, MaxLine, MaxLine + 1, 5*MaxLine + 7} {
		write(w, noon, Stdout, []byte(strings.Repeat("x", n)+"\n"))
	}
	var sizes []string
	err := Read(context.Background(), s, ReadOptions{}, func(e Entry) error {
		sizes = append(sizes, fmt.Sprint(len(e.Line), e.Partial))
		return nil
	})
	want := "16384 false 16384 true 1 false 16384 true 2 false 16384 true 16384 true 16384 true 16384 true 16384 true 8 false"
	if got := strings.Join(sizes, " "); got != want || err != nil {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestCutWaitsForWholeLines(t *testing.T) {
	for _, c := range []struct {
		in    string
		final bool
		want  int
	}{
		{"", false, 0}, {"abc", false, 0}, {"abc", true, 3}, {"abc\nde", false, 4}, {"abc\nde", true, 6},
		{strings.Repeat("x", MaxLine-1), false, 0}, {strings.Repeat("x", MaxLine), false, MaxLine}, {strings.Repeat("x", MaxLine+5), false, MaxLine},
	} {
		if got := Cut([]byte(c.in), c.final); got != c.want {
			t.Errorf("Cut(%d bytes, %v) = %d, want %d", len(c.in), c.final, got, c.want)
		}
	}
	// A batch is bounded whatever the lines are.
	if n := Cut([]byte(strings.Repeat("\n", 1<<20)), false); n > 2000 || n < 100 {
		t.Errorf("a batch of %d empty lines", n)
	}
}

func TestRotation(t *testing.T) {
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprint("compress=", compress), func(t *testing.T) {
			w, s := newLog(t, Spec{MaxSize: 1000, MaxFiles: 3, Compress: compress})
			for i := range 100 {
				write(w, noon.Add(time.Duration(i)*time.Hour), Stdout, fmt.Appendf(nil, "line %d\n", i))
			}
			w.Close()
			files, _ := filepath.Glob(s.Path + "*")
			if len(files) != 3 {
				t.Errorf("files %v", files)
			}
			for _, f := range files {
				if fi, _ := os.Stat(f); fi.Size() > 1100 {
					t.Errorf("%s has %d bytes", f, fi.Size())
				}
				if compress && f != s.Path && !strings.HasSuffix(f, ".gz") {
					t.Errorf("%s is not compressed", f)
				}
			}
			got := collect(t, s, ReadOptions{})
			if len(got) < 20 || got[len(got)-1] != "line 99\n" {
				t.Fatalf("read %d lines, the last %q", len(got), got[len(got)-1])
			}
			first := 100 - len(got)
			for i, l := range got {
				if want := fmt.Sprintf("line %d\n", first+i); l != want {
					t.Fatalf("line %d is %q, want %q", i, l, want)
				}
			}
			for _, n := range []int{1, 5, 15, 25, 1000} {
				want := got[max(0, len(got)-n):]
				if tail := collect(t, s, ReadOptions{Tail: n}); strings.Join(tail, "") != strings.Join(want, "") {
					t.Errorf("tail %d gives %d lines %q…", n, len(tail), tail[0])
				}
			}
			since := collect(t, s, ReadOptions{Since: noon.Add(90 * time.Hour), Until: noon.Add(95 * time.Hour)})
			if len(since) != 6 || since[0] != "line 90\n" || since[5] != "line 95\n" {
				t.Errorf("since and until give %q", since)
			}
		})
	}
}

func TestOneFileOnly(t *testing.T) {
	w, s := newLog(t, Spec{MaxSize: 500, MaxFiles: 1})
	for i := range 100 {
		write(w, noon, Stdout, fmt.Appendf(nil, "line %d\n", i))
	}
	files, _ := filepath.Glob(s.Path + "*")
	got := collect(t, s, ReadOptions{})
	if len(files) != 1 || len(got) == 0 || len(got) > 8 || got[len(got)-1] != "line 99\n" {
		t.Errorf("files %v, lines %q", files, got)
	}
}

func TestTailOfOneStream(t *testing.T) {
	w, s := newLog(t, Spec{})
	for i := range 50 {
		write(w, noon, Stdout, fmt.Appendf(nil, "o%d\n", i))
		write(w, noon, Stdout, fmt.Appendf(nil, "o%d\n", i))
		write(w, noon, Stderr, fmt.Appendf(nil, "e%d\n", i))
	}
	if got := strings.Join(collect(t, s, ReadOptions{Tail: 3, Stderr: true}), ""); got != "e47\ne48\ne49\n" {
		t.Errorf("stderr: %q", got)
	}
	if got := collect(t, s, ReadOptions{Tail: -1}); len(got) != 0 {
		t.Errorf("none: %q", got)
	}
}

func TestTailOfManyLines(t *testing.T) {
	w, s := newLog(t, Spec{MaxSize: -1})
	var all strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&all, "%d %s\n", i, strings.Repeat("y", i%200))
	}
	write(w, noon, Stdout, []byte(all.String()))
	lines := strings.SplitAfter(all.String(), "\n")
	lines = lines[:len(lines)-1]
	for _, n := range []int{1, 2, 999, 15000, 20000, 20001} {
		want := strings.Join(lines[max(0, len(lines)-n):], "")
		if got := strings.Join(collect(t, s, ReadOptions{Tail: n}), ""); got != want {
			t.Errorf("tail %d differs", n)
		}
	}
}

func TestSinceInALargeFile(t *testing.T) {
	w, s := newLog(t, Spec{MaxSize: -1})
	for i := range 5000 {
		write(w, noon.Add(time.Duration(i)*time.Minute), Stdout, fmt.Appendf(nil, "%d %s\n", i, strings.Repeat("z", 100)))
	}
	for _, i := range []int{0, 1, 17, 2500, 4998, 4999} {
		got := collect(t, s, ReadOptions{Since: noon.Add(time.Duration(i) * time.Minute)})
		if len(got) != 5000-i || !strings.HasPrefix(got[0], fmt.Sprint(i, " ")) {
			t.Errorf("since %d: %d lines", i, len(got))
		}
	}
}

// A follower sees each line once, in order, while files are rotated under it.
func TestFollowAcrossRotation(t *testing.T) {
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprint("compress=", compress), func(t *testing.T) {
			const lines, followers = 20000, 4
			w, s := newLog(t, Spec{MaxSize: 64 << 10, MaxFiles: 5, Compress: compress})
			write(w, noon, Stdout, []byte("line 0\n"))
			ended := make(chan struct{})
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			var wg sync.WaitGroup
			progress := make([]chan int, followers)
			for f := range followers {
				progress[f] = make(chan int, lines)
				wg.Go(func() {
					next := 0
					err := Read(ctx, s, ReadOptions{Follow: true, Ended: ended}, func(e Entry) error {
						if want := fmt.Sprintf("line %d\n", next); string(e.Line) != want {
							return fmt.Errorf("got %q, want %q", e.Line, want)
						}
						progress[f] <- next
						next++
						return nil
					})
					if err != nil || next != lines {
						t.Errorf("follower %d: %d lines, %v", f, next, err)
						cancel()
					}
				})
			}
			behind := make([]int, followers)
			for i := 1; i < lines; i++ {
				write(w, noon, Stdout, fmt.Appendf(nil, "line %d\n", i))
				// Faster than disk could be, so keep the followers within the log.
				for f := range behind {
					for behind[f] < i-1000 && ctx.Err() == nil {
						select {
						case behind[f] = <-progress[f]:
						case <-ctx.Done():
						}
					}
				}
			}
			close(ended)
			wg.Wait()
		})
	}
}

func TestFollowEndsAtUntil(t *testing.T) {
	w, s := newLog(t, Spec{})
	write(w, time.Now(), Stdout, []byte("x\n"))
	if got := collect(t, s, ReadOptions{Follow: true, Until: time.Now().Add(20 * time.Millisecond)}); len(got) != 1 {
		t.Errorf("got %q", got)
	}
}

func TestFollowStartsBeforeTheFirstLine(t *testing.T) {
	s := Spec{Path: filepath.Join(t.TempDir(), "later")}
	ended := make(chan struct{})
	done := make(chan []string)
	seen := make(chan struct{}, 1)
	go func() {
		var got []string
		Read(context.Background(), s, ReadOptions{Follow: true, Ended: ended}, func(e Entry) error {
			got = append(got, string(e.Line))
			seen <- struct{}{}
			return nil
		})
		done <- got
	}()
	w, _ := newLog(t, s)
	write(w, noon, Stdout, []byte("first\n"))
	<-seen
	close(ended)
	if got := <-done; len(got) != 1 {
		t.Errorf("got %q", got)
	}
}

// A Read that goes on from a position yields what came after it: once, in order,
// from the file as it is, rotated, packed or gone.
func TestReadFromAPosition(t *testing.T) {
	for _, compress := range []bool{false, true} {
		w, s := newLog(t, Spec{MaxSize: 2000, MaxFiles: 3, Compress: compress})
		add := func(from, to int) {
			for i := from; i < to; i++ {
				write(w, noon.Add(time.Duration(i/5)), Stdout, fmt.Appendf(nil, "line %d\n", i))
			}
		}
		read := func(after Position) (got []string, last Position) {
			caught := 0
			err := Read(context.Background(), s, ReadOptions{After: after, CaughtUp: func() { caught++ }}, func(e Entry) error {
				got, last = append(got, strings.TrimSpace(string(e.Line))), e.After
				return nil
			})
			if err != nil || caught != 1 {
				t.Fatal(err, caught)
			}
			return got, last
		}
		add(0, 10)
		_, at := read(Position{})
		add(10, 40) // over into another file, which is packed
		got, _ := read(at)
		if len(got) != 30 || got[0] != "line 10" || got[29] != "line 39" {
			t.Errorf("compress=%v: after rotation: %q", compress, got)
		}
		add(40, 400)
		got, end := read(at)
		if len(got) < 20 || got[len(got)-1] != "line 399" {
			t.Errorf("compress=%v: after its file is gone: %q", compress, got)
		}
		if got, _ := read(end); len(got) != 0 {
			t.Errorf("compress=%v: from the end: %q", compress, got)
		}
		// The same inode and offset, but another entry: it is another file.
		end.Time = end.Time.Add(1)
		if got, _ := read(end); len(got) < 20 {
			t.Errorf("compress=%v: another file: %q", compress, got)
		}
	}
}

func TestHalfALineAtTheEnd(t *testing.T) {
	w, s := newLog(t, Spec{})
	write(w, noon, Stdout, []byte("whole\n"))
	w.Close()
	f, _ := os.OpenFile(s.Path, os.O_APPEND|os.O_WRONLY, 0)
	f.WriteString(`{"log":"half`)
	f.Close()
	if got := collect(t, s, ReadOptions{Tail: 1}); len(got) != 1 || got[0] != "whole\n" {
		t.Errorf("tail %q", got)
	}
	w, err := OpenWriter(s)
	if err != nil {
		t.Fatal(err)
	}
	write(w, noon, Stdout, []byte("next\n"))
	w.Close()
	if got := strings.Join(collect(t, s, ReadOptions{}), ""); got != "whole\nnext\n" {
		t.Errorf("after mending %q", got)
	}
}

func TestRedoGivesTheSameBytes(t *testing.T) {
	w, s := newLog(t, Spec{})
	write(w, noon, Stdout, []byte("before\n"))
	off := w.Offset()
	batch := []byte("one\ntwo\n")
	w.Write(noon, Stderr, batch)
	want, _ := os.ReadFile(s.Path)
	w.Close()
	for cut := off; cut <= int64(len(want)); cut++ {
		os.WriteFile(s.Path, want[:cut], 0o600)
		w, err := OpenWriter(s)
		if err != nil {
			t.Fatal(err)
		}
		w.Redo(off, noon, Stderr, batch)
		w.Close()
		if got, _ := os.ReadFile(s.Path); string(got) != string(want) {
			t.Fatalf("killed after %d bytes: %q", cut, got)
		}
	}
}

func TestFullDiskIsTold(t *testing.T) {
	w, s := newLog(t, Spec{})
	write(w, noon, Stdout, []byte("before\n"))
	// A descriptor that cannot be written stands for a disk that is full.
	good := w.f
	w.f, _ = os.Open(s.Path)
	write(w, noon, Stdout, []byte("lost\nlost too\n"))
	if n, cause := w.Dropped(); n != 2 || cause == nil {
		t.Errorf("dropped %d, %v", n, cause)
	}
	w.f.Close()
	w.f = good
	write(w, noon, Stdout, []byte("after\n"))
	got := strings.Join(collect(t, s, ReadOptions{}), "")
	if !strings.HasPrefix(got, "before\nonggi: 2 lines could not be logged: ") || !strings.HasSuffix(got, "\nafter\n") {
		t.Errorf("log %q", got)
	}
	if n, _ := w.Dropped(); n != 0 {
		t.Errorf("still %d to be told", n)
	}
}

func TestReadWithoutALog(t *testing.T) {
	err := Read(context.Background(), Spec{Driver: None}, ReadOptions{}, nil)
	if !errdefs.Is(err, errdefs.Unsupported) || errdefs.HintOf(err) == "" {
		t.Errorf("none: %v", err)
	}
	if got := collect(t, Spec{Path: filepath.Join(t.TempDir(), "never")}, ReadOptions{}); len(got) != 0 {
		t.Errorf("never written: %q", got)
	}
	if _, err := OpenWriter(Spec{Driver: "syslog", Path: "x"}); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("syslog: %v", err)
	}
}

func TestReadStopsWithTheCallbacksError(t *testing.T) {
	w, s := newLog(t, Spec{})
	write(w, noon, Stdout, []byte("a\nb\n"))
	stop := errors.New("stop")
	n := 0
	if err := Read(context.Background(), s, ReadOptions{Follow: true}, func(Entry) error { n++; return stop }); err != stop || n != 1 {
		t.Errorf("%d calls, %v", n, err)
	}
}

// What is written is read back, and is JSON as others understand it.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("a\nb"), "k", "v")
	f.Add([]byte("\xff\u2028<\x01\"\\\n"), "", "\n")
	f.Fuzz(func(t *testing.T, p []byte, k, v string) {
		w, s := newLog(t, Spec{Attrs: map[string]string{k: v}})
		write(w, noon, Stdout, p)
		b, _ := os.ReadFile(s.Path)
		var all []byte
		for line := range strings.Lines(string(b)) {
			var j struct {
				Log, Stream string
				Time        time.Time
				Attrs       map[string]string
			}
			if err := json.Unmarshal([]byte(line), &j); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			e, _, err := parseEntry([]byte(line), nil)
			if err != nil || string(e.Line) != j.Log || e.Stream != j.Stream || !e.Time.Equal(j.Time) || len(e.Attrs) != len(j.Attrs) {
				t.Fatalf("%q: got %+v, %v", line, e, err)
			}
			all = append(all, e.Line...)
		}
		want := strings.ToValidUTF8(string(p), "\uFFFD")
		if got := strings.ToValidUTF8(string(all), "\uFFFD"); !similar(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

// similar compares but for a newline at the end, and for how many marks stand for
// bytes that are no text.
func similar(a, b string) bool {
	fold := func(s string) string {
		s = strings.TrimSuffix(s, "\n")
		return strings.ReplaceAll(s, "\uFFFD", "")
	}
	return fold(a) == fold(b)
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","attrs":{"a":"b"},"time":"2026-01-02T12:00:00.1234567Z"}`))
	f.Add([]byte(`{"log":"\ud83d\ude00\u0041","stream":"x","time":"2026-01-02T12:00:00Z"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, _, err := parseEntry(line, nil)
		if err != nil {
			return
		}
		var j struct{ Log, Stream string }
		if jerr := json.Unmarshal(line, &j); jerr == nil && !similar(j.Log, strings.ToValidUTF8(string(e.Line), "")) {
			t.Errorf("%q: got %q, encoding/json %q", line, e.Line, j.Log)
		}
	})
}

func BenchmarkWriteShortLines(b *testing.B) {
	w, _ := newLog(b, Spec{MaxFiles: 2})
	p := []byte(strings.Repeat("2026-01-02 12:00:00 INFO request served\n", 1000))
	b.SetBytes(40)
	for i := 0; i < b.N; i += 1000 {
		write(w, noon, Stdout, p)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}

func BenchmarkTail100k(b *testing.B) {
	w, s := newLog(b, Spec{MaxSize: -1})
	p := []byte(strings.Repeat("2026-01-02 12:00:00 INFO request served\n", 1000))
	for range 200 {
		write(w, noon, Stdout, p)
	}
	for b.Loop() {
		Read(context.Background(), s, ReadOptions{Tail: 100000}, func(Entry) error { return nil })
	}
}
