// A command ends before its share of the processors can change: the runtime need
// not look its limits up in the control groups.
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command onggi is the command line of Onggi: Docker's verbs and flags, with
// short start-up and errors that say what to try.
package main

import (
	"os"

	"github.com/onggi/onggi/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
