package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serve runs h on a unix socket, as the oracle: the standard library's server.
func serve(t *testing.T, h http.Handler) *Client {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	c, err := New(Options{Host: "unix://" + sock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCall(t *testing.T) {
	conns := 0
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1.56/echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.Copy(w, r.Body)
	})
	mux.HandleFunc("GET /v1.56/none", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("GET /v1.56/bad", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(409)
		w.Write([]byte(`{"message":"name in use","hint":"rename it"}`))
	})
	mux.HandleFunc("GET /v1.56/big", func(w http.ResponseWriter, r *http.Request) {
		for range 100 {
			w.Write(bytes.Repeat([]byte("x"), 10000))
			w.(http.Flusher).Flush()
		}
	})
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { mux.ServeHTTP(w, r) }))
	dial := c.o.Dial
	c.o.Dial = func(ctx context.Context) (net.Conn, error) { conns++; return dial(ctx) }
	ctx := context.Background()

	in, out := map[string]string{"a": "b"}, map[string]string{}
	if err := c.Call(ctx, "POST", "/echo", nil, in, &out); err != nil || out["a"] != "b" {
		t.Fatalf("echo: %v, %v", out, err)
	}
	if err := c.Call(ctx, "GET", "/none", nil, nil, &out); err != nil {
		t.Fatal(err)
	}
	err := c.Call(ctx, "GET", "/bad", nil, nil, nil)
	var e *Error
	if !errors.As(err, &e) || e.Status != 409 || e.Message != "name in use" || e.Hint != "rename it" {
		t.Fatalf("bad: %#v", err)
	}
	resp, err := c.Do(ctx, Request{Method: "GET", Path: "/big"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || len(b) != 1000000 {
		t.Fatalf("big: %d bytes, %v", len(b), err)
	}
	resp, err = c.Do(ctx, Request{Method: "POST", Path: "/echo", Body: iotestOneByte{strings.NewReader(`"streamed"`)}})
	if err != nil {
		t.Fatal(err)
	}
	b, _ = io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != `"streamed"` {
		t.Fatalf("streamed: %q", b)
	}
	if conns != 1 {
		t.Errorf("%d connections for five calls, want 1", conns)
	}
}

type iotestOneByte struct{ r io.Reader }

func (o iotestOneByte) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

func TestCancelEndsStream(t *testing.T) {
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	resp, err := c.Do(ctx, Request{Method: "GET", Path: "/events"})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("read: %v", err)
	}
}

func TestRunFrames(t *testing.T) {
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q RunRequest
		if json.NewDecoder(r.Body).Decode(&q) != nil || q.Name != "web" || r.URL.Path != RunPath {
			w.WriteHeader(400)
			return
		}
		nc, buf, _ := w.(http.Hijacker).Hijack()
		defer nc.Close()
		io.WriteString(nc, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		kind, p, err := ReadFrame(buf, nil)
		if err != nil {
			return
		}
		WriteFrame(nc, FrameStdout, append([]byte{kind}, p...))
		code := 3
		b, _ := json.Marshal(RunEvent{Exit: &code})
		WriteFrame(nc, FrameEvent, b)
	}))
	r, err := c.Run(context.Background(), RunRequest{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Stdin([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if s, p, err := r.Next(nil); err != nil || s != FrameStdout || string(p) != "\x00hello" {
		t.Fatalf("%d %q %v", s, p, err)
	}
	s, p, err := r.Next(nil)
	var ev RunEvent
	if err != nil || s != FrameEvent || json.Unmarshal(p, &ev) != nil || *ev.Exit != 3 {
		t.Fatalf("%d %q %v", s, p, err)
	}
	if _, _, err := r.Next(nil); err != io.EOF {
		t.Fatalf("end: %v", err)
	}
	if _, err := c.Run(context.Background(), RunRequest{Name: "other"}); StatusOf(err) != 400 {
		t.Fatalf("refusal: %v", err)
	}
}

// What is not HTTP is told from what is, and nothing is read without bound.
func TestNotAnAnswer(t *testing.T) {
	for _, in := range []string{"", "SSH-2.0-x\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\nnocolon\r\n\r\n", "HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 1000) + "\r\n", strings.Repeat("x", 1<<20)} {
		if _, err := readHead(bufio.NewReader(strings.NewReader(in))); err == nil {
			t.Errorf("%.20q: accepted", in)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReader(bytes.NewReader(in))
		resp, err := readHead(r)
		if err != nil {
			return
		}
		if b := bodyOf("GET", resp, r); b != nil {
			got, _ := io.ReadAll(b)
			if len(got) > len(in) {
				t.Fatalf("%d bytes of body from %d bytes", len(got), len(in))
			}
		}
	})
}
