package cli

import (
	"context"
	"encoding/json"
	"net/url"

	"github.com/spf13/pflag"

	"github.com/onggi/onggi/internal/api"
)

func whyCommands() []command {
	return []command{
		{paths: []string{"why build"}, args: "[OPTIONS] [BUILD|IMAGE]", short: "Tell for each step of a build why it ran, the last build's by default", max: 1, setup: setupWhyBuild},
	}
}

func setupWhyBuild(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	format := f.String("format", "", "json, or a Go template")
	return func(ctx context.Context, args []string) error {
		q := url.Values{}
		if len(args) > 0 {
			q.Set("ref", args[0])
		}
		var w api.BuildWhy
		if err := e.call(ctx, "GET", "/onggi/v1/build/why", q, nil, &w); err != nil {
			return err
		}
		if *format == "json" {
			return json.NewEncoder(e.out).Encode(w)
		}
		if *format != "" {
			return e.template(*format, []any{w})
		}
		w.Text(e.out)
		return nil
	}
}
