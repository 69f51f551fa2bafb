package cli

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/pflag"
)

// statsAnswer is the part of GET /containers/{id}/stats that is shown.
type statsAnswer struct {
	Name, ID string
	CPU      cpuStats `json:"cpu_stats"`
	PreCPU   cpuStats `json:"precpu_stats"`
	Memory   struct {
		Usage, Limit uint64
		Stats        map[string]uint64
	} `json:"memory_stats"`
	Networks map[string]struct {
		Rx uint64 `json:"rx_bytes"`
		Tx uint64 `json:"tx_bytes"`
	}
	Blkio struct {
		Bytes []struct {
			Op    string
			Value uint64
		} `json:"io_service_bytes_recursive"`
	} `json:"blkio_stats"`
	Pids struct{ Current uint64 } `json:"pids_stats"`
}

type cpuStats struct {
	Usage struct {
		Total uint64 `json:"total_usage"`
	} `json:"cpu_usage"`
	System uint64 `json:"system_cpu_usage"`
	Online uint64 `json:"online_cpus"`
}

func setupStats(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	all := f.BoolP("all", "a", false, "stopped ones too")
	format := f.String("format", "", "table, json, or a Go template")
	noStream := f.Bool("no-stream", false, "once only")
	noTrunc := f.Bool("no-trunc", false, "do not shorten")
	return func(ctx context.Context, args []string) error {
		for {
			l, err := e.statsOnce(ctx, args, *all, *noTrunc)
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			if !*noStream && isTerminal(e.out) {
				fmt.Fprint(e.out, "\033[H\033[J")
			}
			if err := e.show(l, *format, false); err != nil || *noStream {
				return err
			}
			if ctx.Err() != nil {
				return nil
			}
		}
	}
}

// statsOnce asks for all containers at once; each answer takes a second,
// because it compares two readings.
func (e *env) statsOnce(ctx context.Context, names []string, all, noTrunc bool) (*list, error) {
	if len(names) == 0 {
		q := url.Values{"onggi-brief": {"1"}}
		if all {
			q.Set("all", "1")
		}
		cs, err := e.containers(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, c := range cs {
			names = append(names, c.ID)
		}
		if len(cs) == 0 {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
	l := &list{columns: []string{"ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"},
		titles: map[string]string{"ID": "CONTAINER ID", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS"}}
	rows := make([]row, len(names))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, n := range names {
		wg.Go(func() {
			var s statsAnswer
			if errs[i] = e.call(ctx, "GET", "/containers/"+url.PathEscape(n)+"/stats", url.Values{"stream": {"0"}}, nil, &s); errs[i] == nil {
				rows[i] = statsRow(&s, noTrunc)
			}
		})
	}
	wg.Wait()
	for i := range names {
		if errs[i] != nil && !isNotFound(errs[i]) {
			return nil, errs[i]
		}
		if rows[i] != nil {
			l.rows = append(l.rows, rows[i])
		}
	}
	if len(names) == 1 && errs[0] != nil {
		return nil, errs[0]
	}
	return l, nil
}

func statsRow(s *statsAnswer, noTrunc bool) row {
	cpu := 0.0
	if s.CPU.System > s.PreCPU.System && s.CPU.Usage.Total >= s.PreCPU.Usage.Total {
		cpu = float64(s.CPU.Usage.Total-s.PreCPU.Usage.Total) / float64(s.CPU.System-s.PreCPU.System) * float64(max(s.CPU.Online, 1)) * 100
	}
	used := s.Memory.Usage
	for _, k := range []string{"total_inactive_file", "inactive_file"} { // page cache that can go is not counted
		if v, ok := s.Memory.Stats[k]; ok && v < used {
			used -= v
			break
		}
	}
	mem := 0.0
	if s.Memory.Limit > 0 {
		mem = float64(used) / float64(s.Memory.Limit) * 100
	}
	var rx, tx, read, written uint64
	for _, n := range s.Networks {
		rx += n.Rx
		tx += n.Tx
	}
	for _, b := range s.Blkio.Bytes {
		switch b.Op {
		case "Read", "read":
			read += b.Value
		case "Write", "write":
			written += b.Value
		}
	}
	id, name := s.ID, s.Name
	if !noTrunc {
		id = shortID(id)
	}
	if len(name) > 0 && name[0] == '/' {
		name = name[1:]
	}
	return row{"ID": id, "Container": id, "Name": name, "CPUPerc": fmt.Sprintf("%.2f%%", cpu), "MemUsage": binarySize(used) + " / " + binarySize(s.Memory.Limit),
		"MemPerc": fmt.Sprintf("%.2f%%", mem), "NetIO": humanSize(int64(rx)) + " / " + humanSize(int64(tx)),
		"BlockIO": humanSize(int64(read)) + " / " + humanSize(int64(written)), "PIDs": strconv.FormatUint(s.Pids.Current, 10)}
}
