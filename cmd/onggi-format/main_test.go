package main

import (
	"strings"
	"testing"
	"text/template"
)

func TestFunctions(t *testing.T) {
	item := map[string]any{"null": nil, "list": []any{"a", "b"}, "text": "ab", "map": map[string]any{"k": "v"}, "Labels": "a=b,c=d"}
	for text, want := range map[string]string{
		`{{len .null}} {{len .list}} {{len .text}} {{len .map}}`: "0 2 2 1",
		`{{range .null}}x{{end}}`:                                "",
		`{{json .list}} {{json .null}}`:                          `["a","b"] null`,
		`{{join .list "-"}} {{upper .text}} {{title .text}}`:     "a-b AB Ab",
		`{{label "c" .}} {{truncate .text 1}} {{pad .text 1 1}}`: "d a  ab ",
	} {
		var out strings.Builder
		if err := template.Must(template.New("").Funcs(functions()).Parse(text)).Execute(&out, item); err != nil || out.String() != want {
			t.Errorf("%s gives %q, %v; want %q", text, out.String(), err, want)
		}
	}
	if got := spelled([]any{map[string]any{"Host": map[string]any{"CpuShares": 1}}}, "CPUShares"); got != "CpuShares" {
		t.Errorf("CPUShares is spelled %q", got)
	}
	if err := template.Must(template.New("").Funcs(functions()).Parse(`{{len 3}}`)).Execute(new(strings.Builder), nil); err == nil {
		t.Error("a number has a length")
	}
}
