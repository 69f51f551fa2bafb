package build

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/version"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
)

// newServer makes a gRPC server through which BuildKit's typed errors pass. Our
// own kinds are not made gRPC codes: BuildKit's clients would print their names.
func newServer(c *core) *grpc.Server {
	return grpc.NewServer(
		grpc.ChainUnaryInterceptor(grpcerrors.UnaryServerInterceptor, c.intercept, func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
			defer survive(&err)
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(grpcerrors.StreamServerInterceptor, func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			defer survive(&err)
			return next(srv, s)
		}),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
}

// survive makes a panic over a client's message that request's error: it must
// not end the engine.
func survive(err *error) {
	if p := recover(); p != nil {
		logrus.Errorf("a request of a build client: %v\n%s", p, debug.Stack())
		*err = fmt.Errorf("the request cannot be understood: %v", p)
	}
}

// buildKitVersion tells clients whose protocol we speak: they ask for features
// by it.
func buildKitVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == version.Package {
				return d.Version
			}
		}
	}
	return "v0.34.2" // tests have no such information
}

// quietBuildKit sends what BuildKit logs to our logger.
func quietBuildKit(l *slog.Logger) {
	std := logrus.StandardLogger()
	std.SetOutput(io.Discard)
	std.SetLevel(logrus.WarnLevel)
	std.ReplaceHooks(logrus.LevelHooks{})
	std.AddHook(&toSlog{l})
}

type toSlog struct{ l *slog.Logger }

func (h *toSlog) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

func (h *toSlog) Fire(e *logrus.Entry) error {
	level := slog.LevelWarn
	if e.Level <= logrus.ErrorLevel {
		level = slog.LevelError
	}
	switch {
	case strings.HasPrefix(e.Message, "no trace recorder"), // a build that was answered promptly
		strings.HasPrefix(e.Message, "failed to save trace"), // the engine ended within seconds of a build
		strings.HasPrefix(e.Message, "healthcheck failed"):   // a client has gone, as clients do
		level = slog.LevelDebug
	}
	attrs := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, k, v)
	}
	h.l.Log(context.Background(), level, e.Message, attrs...)
	return nil
}
