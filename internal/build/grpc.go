package build

import (
	"context"
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
		grpc.ChainUnaryInterceptor(grpcerrors.UnaryServerInterceptor, c.intercept),
		grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
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
	switch {
	case e.Level <= logrus.ErrorLevel:
		level = slog.LevelError
	case strings.HasPrefix(e.Message, "no trace recorder"): // each build; we keep no traces
		level = slog.LevelDebug
	}
	if strings.HasPrefix(e.Message, "healthcheck failed") { // a client has gone, as clients do
		level = slog.LevelDebug
	}
	attrs := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, k, v)
	}
	h.l.Log(context.Background(), level, e.Message, attrs...)
	return nil
}
