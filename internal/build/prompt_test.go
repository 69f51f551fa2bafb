package build

import (
	"context"
	"testing"

	"github.com/moby/buildkit/client"
	"google.golang.org/grpc/metadata"
)

// A client that asks for it is answered with the image, and the record of the
// build is written all the same.
func TestPromptAnswerIsTheWholeAnswer(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	dir := contextDir(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY a /\nRUN x\n", "a": "a"})
	o := buildOptions{dir: dir, output: client.ExportEntry{Type: "moby", Attrs: map[string]string{"name": "docker.io/library/t:latest"}}}
	patient, err := b.build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	prompt, err := b.build(metadata.AppendToOutgoingContext(t.Context(), promptKey, "1"), o)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range patient.resp {
		if k != "containerimage.descriptor" && prompt.resp[k] != v { // it has the time in it
			t.Errorf("%s: %q, want %q", k, prompt.resp[k], v)
		}
	}
	if len(prompt.resp) != len(patient.resp) {
		t.Errorf("answers %v and %v", prompt.resp, patient.resp)
	}
	b.c.prompt.ending.Wait()
	if n := len(b.history()); n != 2 {
		t.Errorf("%d builds recorded, want 2", n)
	}
	// What fails is still told, and a client that goes away ends its build.
	o.attrs = map[string]string{"filename": "none"}
	if _, err := b.build(metadata.AppendToOutgoingContext(t.Context(), promptKey, "1"), o); err == nil {
		t.Error("a build without a Dockerfile succeeded")
	}
	hang := &hangingExecutor{started: make(chan struct{})}
	h := newBuilder(t, hang)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-hang.started; cancel() }()
	if _, err := h.build(metadata.AppendToOutgoingContext(ctx, promptKey, "1"), buildOptions{dir: dir, output: o.output}); err == nil {
		t.Error("a cancelled build succeeded")
	}
	h.c.prompt.ending.Wait()
}
