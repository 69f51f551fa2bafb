package build

import (
	"context"
	"net/http"
	"sync"

	"github.com/moby/buildkit/util/tracing/detect"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
)

// tracer makes spans that end in the record of their build, where clients look
// for them (buildx history trace). BuildKit has one recorder for the process.
var tracer = sync.OnceValue(func() trace.Tracer {
	detect.Recorder = detect.NewTraceRecorder()
	return sdktrace.NewTracerProvider(
		sdktrace.WithSyncer(detect.Recorder),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "onggid"))),
	).Tracer("")
})

// traced begins a build's trace, or goes on with its client's. A client that
// wants its answer promptly has none: it costs time.
func traced(ctx context.Context) (context.Context, trace.Span) {
	md, _ := metadata.FromIncomingContext(ctx)
	if len(md.Get(promptKey)) > 0 {
		return ctx, trace.SpanFromContext(ctx)
	}
	h := http.Header{}
	for _, k := range (propagation.TraceContext{}).Fields() {
		for _, v := range md.Get(k) {
			h.Add(k, v)
		}
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(h))
	return tracer().Start(ctx, "build", trace.WithSpanKind(trace.SpanKindServer))
}
