// Command onggid is Onggi's engine: it serves the Docker Engine API, and keeps
// images, builds, networks, volumes and the life of containers.
//
// # Model
//
// The engine may be stopped, killed or replaced at any moment; containers run
// on, since their parent is onggi-monitor. SIGTERM and SIGINT stop the engine
// only (what dockerd calls live restore is the only way here); `onggid
// --cleanup` removes what a stopped engine left running and in the kernel.
//
// Flags are dockerd's where the same thing exists; config.go has the table.
//
// # Guarantees
//
// One engine per data-root and exec-root, held by locks on both. It listens on
// TCP only with client certificates, or on loopback where that was asked for.
//
// # Not here
//
// Any decision about containers or images: internal/. This is the only place
// where services meet (wire.go).
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/onggi/onggi/internal/errdefs"
)

// Set by the linker.
var (
	version   = "0.1.0-dev"
	commit    = ""
	buildTime = ""
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr *os.File) int {
	cfg, err := parse(args)
	if err != nil {
		if errors.Is(err, errHelp) {
			usage(stdout)
			return 0
		}
		return complain(stderr, err, 125)
	}
	switch {
	case cfg.showVersion:
		fmt.Fprintf(stdout, "Onggi version %s, build %s\n", version, orUnknown(commit))
		return 0
	case cfg.validateOnly:
		fmt.Fprintln(stdout, "configuration OK")
		return 0
	}
	level := new(slog.LevelVar)
	level.Set(cfg.level())
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	for _, n := range cfg.notes {
		log.Info(n)
	}
	cfg.setProxies(log)
	heap.start()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go dumpOnSignal(cfg, log)
	if cfg.cleanup {
		err = cleanUp(ctx, cfg, log)
	} else {
		err = serve(ctx, cfg, log)
	}
	if err != nil {
		return complain(stderr, err, 1)
	}
	return 0
}

func complain(w *os.File, err error, code int) int {
	fmt.Fprintln(w, "onggid:", err)
	if h := errdefs.HintOf(err); h != "" {
		fmt.Fprintln(w, "try:", h)
	}
	return code
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// dumpOnSignal writes all goroutines to a file on SIGUSR1, and ignores what
// dockerd would reload on SIGHUP.
func dumpOnSignal(cfg *config, log *slog.Logger) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1, syscall.SIGHUP)
	for s := range c {
		if s == syscall.SIGHUP {
			log.Warn("configuration is read at start only; restart the engine, containers run on meanwhile")
			continue
		}
		buf := make([]byte, 4<<20)
		file := cfg.execRoot + "/goroutines.txt"
		if err := os.WriteFile(file, buf[:runtime.Stack(buf, true)], 0o600); err != nil {
			log.Error("goroutines not written", "error", err)
			continue
		}
		log.Info("goroutines written", "file", file)
	}
}
