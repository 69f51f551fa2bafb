package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/onggi/onggi/internal/errdefs"
)

const (
	// batchBytes is when an encoded batch is full.
	batchBytes = 64 << 10
	// worstEntry is more than an entry of MaxLine bytes can take: six for each
	// byte, and the fields around them. Attributes come on top.
	worstEntry = 6*MaxLine + 256
)

// encodeBuffers are shared by all Writers, so that an idle one holds nothing.
var encodeBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, batchBytes+worstEntry)
	return &b
}}

// A Writer appends to one log. It is not safe for use by several goroutines.
type Writer struct {
	spec  Spec
	attrs []byte // encoded, with the comma before; nil without
	f     *os.File
	size  int64 // of f: where the next batch goes

	packing chan struct{} // closed when the last rotated file is compressed; nil: none is

	dropped      int64 // bytes of output not stored since the last note
	droppedLines int64
	cause        error
}

// OpenWriter opens the log for appending. Where it is missing its directory must
// exist; the file is made with the first entry. With the driver "none" everything
// is accepted and nothing kept.
func OpenWriter(spec Spec) (*Writer, error) {
	if err := spec.Check(); err != nil {
		return nil, err
	}
	w := &Writer{spec: spec.withDefaults()}
	if w.spec.Driver == None {
		return w, nil
	}
	if len(spec.Attrs) > 0 {
		w.attrs = appendAttrs([]byte(`,"attrs":`), spec.Attrs)
	}
	err := w.open(0)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(filepath.Dir(spec.Path))
	}
	if err != nil {
		return nil, errdefs.Newf(errdefs.Internal, "open", "log "+spec.Path, "%w", err)
	}
	return w, nil
}

func (w *Writer) open(create int) error {
	f, err := os.OpenFile(w.spec.Path, os.O_WRONLY|create, 0o640)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	w.f, w.size = f, fi.Size()
	return w.mend()
}

// mend takes back a last line that was not written to its end.
func (w *Writer) mend() error {
	r, err := os.Open(w.spec.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	buf := make([]byte, 512)
	for end := w.size; end > 0; {
		start := max(0, end-int64(len(buf)))
		if _, err := r.ReadAt(buf[:end-start], start); err != nil {
			return err
		}
		if i := bytes.LastIndexByte(buf[:end-start], '\n'); i >= 0 || start == 0 {
			if end = start + int64(i) + 1; end < w.size {
				w.size = end
				return w.f.Truncate(end)
			}
			return nil
		}
		end = start
		if len(buf) < 64<<10 {
			buf = make([]byte, 64<<10)
		}
	}
	return nil
}

// Cut tells how many bytes at the head of p form whole entries that fit one
// batch. Zero: more of the line must come first. With final set no more comes,
// and the last line counts as whole.
func Cut(p []byte, final bool) int {
	n, encoded := 0, 0
	for n < len(p) && encoded < batchBytes {
		line := lineAt(p[n:], final)
		if line == 0 {
			break
		}
		n += line
		encoded += line + entryOverhead
	}
	return n
}

// entryOverhead is about what an entry's fields take around the text.
const entryOverhead = 80

// lineAt is the length of the entry at the head of p, zero if it is not whole.
func lineAt(p []byte, final bool) int {
	window := p[:min(len(p), MaxLine)]
	if i := bytes.IndexByte(window, '\n'); i >= 0 {
		return i + 1
	}
	if len(p) >= MaxLine {
		return MaxLine
	}
	if final {
		return len(p)
	}
	return 0
}

// Offset is where the next Write puts its batch, after beginning a new file if
// the present one is full.
func (w *Writer) Offset() int64 {
	if w.f != nil && w.spec.MaxSize > 0 && w.size >= w.spec.MaxSize {
		if err := w.rotate(); err != nil {
			w.cause = err
		}
	}
	return w.size
}

// Redo stores a batch again that began at offset and may have been written in
// part, or wholly. With the same t it gives the same bytes, so that a reader who
// has seen them notices nothing.
func (w *Writer) Redo(offset int64, t time.Time, stream Stream, p []byte) {
	w.size = min(offset, w.size)
	w.Write(t, stream, p)
	if w.f != nil {
		w.f.Truncate(w.size)
	}
}

// Write stores p, which Cut has measured, as entries that arrived at t. A line
// that was never ended is stored without a newline, as the pieces of a long one.
//
// It never fails: what could not be stored is counted, and told in the log when
// there is room again.
func (w *Writer) Write(t time.Time, stream Stream, p []byte) {
	if w.spec.Driver == None {
		return
	}
	bp := encodeBuffers.Get().(*[]byte)
	buf := (*bp)[:0]
	var tbuf [len(time.RFC3339Nano) + 2]byte
	stamp := t.UTC().AppendFormat(tbuf[:0], time.RFC3339Nano)
	lines := int64(0)
	for len(p) > 0 {
		n := lineAt(p, true)
		buf = w.appendEntry(buf, p[:n], stream, stamp)
		p = p[n:]
		lines++
	}
	w.store(buf, lines)
	if cap(buf) <= 4*(batchBytes+worstEntry) {
		*bp = buf
		encodeBuffers.Put(bp)
	}
}

func (w *Writer) store(buf []byte, lines int64) {
	if w.f == nil {
		if err := w.open(os.O_CREATE); err != nil {
			w.drop(len(buf), lines, err)
			return
		}
	}
	note := w.note()
	if len(note) > 0 {
		buf = append(note, buf...)
	}
	n, err := w.f.WriteAt(buf, w.size)
	if err != nil {
		// A part of a batch would be half a line: take it back. The file keeps
		// its blocks, so this works on a full disk.
		if n > 0 {
			w.f.Truncate(w.size)
		}
		w.drop(len(buf)-len(note), lines, err)
		return
	}
	w.size += int64(n)
	if len(note) > 0 {
		w.dropped, w.droppedLines, w.cause = 0, 0, nil
	}
}

func (w *Writer) drop(n int, lines int64, err error) {
	w.dropped += int64(n)
	w.droppedLines += lines
	w.cause = err
}

// note is an entry that tells what was dropped, nil if nothing was.
func (w *Writer) note() []byte {
	if w.droppedLines == 0 {
		return nil
	}
	cause := w.cause
	if pe, ok := errors.AsType[*fs.PathError](cause); ok {
		cause = pe.Err
	}
	text := fmt.Sprintf("onggi: %d lines could not be logged: %v\n", w.droppedLines, cause)
	stamp := time.Now().UTC().AppendFormat(nil, time.RFC3339Nano)
	return w.appendEntry(nil, []byte(text), Stderr, stamp)
}

// Dropped is how many lines wait to be told as not stored, and why.
func (w *Writer) Dropped() (lines int64, cause error) { return w.droppedLines, w.cause }

// Close ends the log.
func (w *Writer) Close() error {
	if w.f == nil {
		return nil
	}
	if w.droppedLines > 0 {
		w.store(nil, 0)
	}
	err := w.f.Close()
	w.f = nil
	if w.packing != nil {
		<-w.packing
	}
	return err
}

func (w *Writer) appendEntry(b, line []byte, stream Stream, stamp []byte) []byte {
	b = append(b, `{"log":"`...)
	b = appendEscaped(b, line)
	if stream == Stderr {
		b = append(b, `","stream":"stderr"`...)
	} else {
		b = append(b, `","stream":"stdout"`...)
	}
	b = append(b, w.attrs...)
	b = append(b, `,"time":"`...)
	b = append(b, stamp...)
	return append(b, "\"}\n"...)
}

// plain are the bytes that stand for themselves in Docker's JSON strings.
var plain = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
	}
	return t
}()

const hex = "0123456789abcdef"

// appendEscaped writes p as the inside of a JSON string, byte for byte as
// Docker's json-file driver does.
func appendEscaped(b, p []byte) []byte {
	start := 0
	for i := 0; i < len(p); {
		c := p[i]
		if plain[c] {
			i++
			continue
		}
		b = append(b, p[start:i]...)
		if c < utf8.RuneSelf {
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			default:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRune(p[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(b, `\ufffd`...)
		case r == '\u2028' || r == '\u2029':
			b = append(b, `\u202`...)
			b = append(b, hex[r&15])
		default:
			b = append(b, p[i:i+size]...)
		}
		i += size
		start = i
	}
	return append(b, p[start:]...)
}

func appendAttrs(b []byte, attrs map[string]string) []byte {
	b = append(b, '{')
	for i, k := range sortedKeys(attrs) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = appendEscaped(b, []byte(k))
		b = append(b, '"', ':', '"')
		b = appendEscaped(b, []byte(attrs[k]))
		b = append(b, '"')
	}
	return append(b, '}')
}
