// Onggi-monitor is the parent of all containers of one engine. The engine starts
// it; see internal/monitor.
package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/onggi/onggi/internal/monitor"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "onggi-monitor:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: onggi-monitor keeper EXEC-ROOT (the engine starts it)")
	}
	switch args[0] {
	case "keeper":
		// Descriptor 3 is closed to tell that engines can connect.
		return monitor.RunKeeper(args[1], func() { os.NewFile(3, "ready").Close() })
	case "worker":
		return monitor.RunWorker(args[1])
	case "resume":
		n, err := strconv.Atoi(args[len(args)-1])
		if err != nil {
			return err
		}
		return monitor.ResumeKeeper(n)
	}
	return fmt.Errorf("no such role: %q", args[0])
}
