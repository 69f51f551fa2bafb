// Command onggi-format prints items with a Go template. It is apart from onggi
// because linking Go's templates makes every command slower; onggi starts it
// for templates with more than plain fields.
//
//	onggi-format [--table] TEMPLATE <items.json
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"text/tabwriter"
	"text/template"
)

// labelCall is a method of Docker's types that our items, being plain maps, do
// not have.
var labelCall = regexp.MustCompile(`\.Label (\S+)`)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "onggi: --format:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	table := len(args) > 0 && args[0] == "--table"
	if table {
		args = args[1:]
	}
	if len(args) != 1 {
		return fmt.Errorf("usage: onggi-format [--table] TEMPLATE <items.json")
	}
	text := strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(args[0])
	text = labelCall.ReplaceAllString(text, "label $1 .")
	dec := json.NewDecoder(os.Stdin)
	dec.UseNumber()
	var items []any
	if err := dec.Decode(&items); err != nil {
		return err
	}
	out, err := execute(text, items)
	for range 10 { // names that differ in case, one at a time
		m := missing.FindStringSubmatch(fmt.Sprint(err))
		if m == nil {
			break
		}
		other := spelled(items, m[1])
		if other == "" {
			return fmt.Errorf("%w\ntry:   --format json, which shows all fields", err)
		}
		text = regexp.MustCompile(`\.`+m[1]+`\b`).ReplaceAllString(text, "."+other)
		out, err = execute(text, items)
	}
	if err != nil {
		return err
	}
	if !table {
		_, err = os.Stdout.Write(out.Bytes())
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 10, 1, 3, ' ', 0)
	w.Write(out.Bytes())
	return w.Flush()
}

// missing is in the error about a field that is not there.
var missing = regexp.MustCompile(`map has no entry for key "(\w+)"`)

func execute(text string, items []any) (*bytes.Buffer, error) {
	t, err := template.New("").Funcs(functions()).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, item := range items {
		if err := t.Execute(&out, item); err != nil {
			return nil, err
		}
		out.WriteByte('\n')
	}
	return &out, nil
}

// spelled finds how a field is spelled whose name is given in another case: ID
// for Id, as Docker's client knows it too.
func spelled(v any, name string) string {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			if s := spelled(x, name); s != "" {
				return s
			}
		}
	case map[string]any:
		for k, x := range v {
			if strings.EqualFold(k, name) && k != name {
				return k
			}
			if s := spelled(x, name); s != "" {
				return s
			}
		}
	}
	return ""
}

// functions are those of Docker's templates.
func functions() template.FuncMap {
	return template.FuncMap{
		"json": func(v any) (string, error) {
			var b bytes.Buffer
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			err := e.Encode(v)
			return strings.TrimSpace(b.String()), err
		},
		// A list that is empty is null in many answers; for Docker's client it is a list.
		"len": func(v any) (int, error) {
			switch v := reflect.ValueOf(v); v.Kind() {
			case reflect.Invalid:
				return 0, nil
			case reflect.String, reflect.Slice, reflect.Map:
				return v.Len(), nil
			default:
				return 0, fmt.Errorf("len of %s", v.Type())
			}
		},
		"split": strings.Split,
		"join": func(list any, sep string) string {
			var out []string
			switch l := list.(type) {
			case []string:
				out = l
			case []any:
				for _, v := range l {
					out = append(out, fmt.Sprint(v))
				}
			}
			return strings.Join(out, sep)
		},
		"title": func(s string) string {
			if s == "" {
				return s
			}
			return strings.ToUpper(s[:1]) + s[1:]
		},
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"pad": func(s string, before, after int) string {
			return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
		},
		"truncate": func(s string, n int) string {
			if len(s) > n {
				return s[:n]
			}
			return s
		},
		"label": func(key string, item any) string {
			m, _ := item.(map[string]any)
			switch l := m["Labels"].(type) {
			case map[string]any:
				return fmt.Sprint(l[key])
			case string:
				for _, kv := range strings.Split(l, ",") {
					if k, v, _ := strings.Cut(kv, "="); k == key {
						return v
					}
				}
			}
			return ""
		},
	}
}
