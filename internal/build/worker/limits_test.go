package worker

import (
	"fmt"
	"strings"
	"testing"
)

func TestCheckDockerfile(t *testing.T) {
	many := func(n int, s string) string { return strings.Repeat(s, n) }
	for _, c := range []struct{ name, in, err string }{
		{"plain", "FROM a\nENV PATH=/x:$PATH\nRUN echo $a$b\n", ""},
		{"nothing", "", ""},
		{"not a Dockerfile", "$$$ ${ ${a", ""},
		{"long", "FROM a\n" + many(1<<15, "# a comment, again and again and again\n"), "larger than"},
		{"PATH again and again", "FROM a\n" + many(500, "ENV PATH=/x/y/z:$PATH LD=$LD:/x\n"), ""},
		{"replaced", "FROM a\nARG V=1.2.3\nENV A=${V//./-} B=${V//./_} C=${V/1/2}\n", ""},
		{"doubled", "FROM a\nENV a=x\n" + many(30, "ENV a=$a$a\n"), "expands to more"},
		{"doubled in stages", "FROM s AS t\nENV a=$a$a\n" + many(30, "FROM t\nENV a=$a${a}\n"), "expands to more"},
		{"doubled in arguments", "ARG a=x\n" + many(30, "ARG a=$a$a\n") + "FROM a\n", "expands to more"},
		{"replaced by much", "FROM a\nENV a=" + many(1000, "x") + "\nENV b=${a//x/" + many(60000, "y") + "}\n", "expands to more"},
		{"replaced by itself", "FROM a\nENV a=xx\n" + many(40, "ENV a=${a//x/xx}\n"), "expands to more"},
		{"defaults", "FROM a\nENV a=xx\n" + many(40, "ENV a=${b:-$a$a}\n"), "expands to more"},
		{"used only", "FROM a\nENV a=" + many(60000, "x") + "\nLABEL b=" + many(400, "$a") + "\n", "expands to more"},
		{"in a heredoc", "FROM a\nENV a=" + many(60000, "x") + "\nCOPY <<E /f\n" + many(400, "$a\n") + "E\n", "expands to more"},
		{"in a shell", "FROM a\nENV a=" + many(60000, "x") + "\nRUN echo " + many(400, "$a") + "\n", ""},
		{"matched", "FROM a\nENV a=" + many(50000, "a") + "\nENV b=${a%" + many(2000, "*a") + "b}\n", "expands to more"},
		{"nested", "FROM a\nENV a=" + many(200, "${x:-") + many(200, "}") + "\n", "nests more"},
		{"continued", "FROM a\nRUN x" + many(10002, "\\\n") + "\n", "more than 10000 lines"},
	} {
		err := checkDockerfile([]byte(c.in))
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		}
	}
	var triggers []string
	for i := range 30 {
		triggers = append(triggers, fmt.Sprintf("ENV a%d=$a%d$a%d", i+1, i, i))
	}
	if err := checkTriggers(triggers); err == nil {
		t.Error("the triggers of an image were not looked at")
	}
}

func FuzzCheckDockerfile(f *testing.F) {
	for _, s := range []string{"FROM a\nENV a=${b//c/$d} e=$f\n", "ARG a\nFROM ${a:-${b#x}}\nCOPY <<E /\n$a\nE\n", "# escape=`\nENV a `\nb\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { checkDockerfile([]byte(s)) })
}
