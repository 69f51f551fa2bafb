package cli

import "fmt"

// A repeated flag is one that may be given several times. pflag's own makes a CSV
// writer for each such flag when it is declared, and run has forty.
type repeated []string

func (l *repeated) Set(s string) error {
	*l = append(*l, s)
	return nil
}

func (l *repeated) String() string {
	if len(*l) == 0 {
		return ""
	}
	return fmt.Sprint([]string(*l))
}

func (l *repeated) Type() string { return "stringArray" }
