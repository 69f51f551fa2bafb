package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"strings"
	"testing"
)

// Sizes worth a look, printed with -v. A long function that reads well is
// better than three that don't, so none of them fails.
const (
	maxFile    = 1000
	maxFunc    = 100
	maxMethods = 40
	maxIface   = 12
)

// A reader meets a package by its comment; without one the first question
// ("what is this for?") has no answer in the code. Contexts in structs outlive
// the call they belong to, and init functions run in programs that never asked.
func TestPackagesExplainThemselves(t *testing.T) {
	for _, root := range []string{"..", "../../cmd"} {
		fset := token.NewFileSet()
		methods := map[string]int{}
		hasDoc := map[string]bool{}
		eachFile(t, root, func(p string, src []byte) {
			if n := strings.Count(string(src), "\n"); n > maxFile {
				t.Logf("look: %s: %d lines", p, n)
			}
			f, err := parser.ParseFile(fset, p, src, parser.ParseComments)
			if err != nil {
				t.Error(err)
				return
			}
			dir := path.Dir(p)
			hasDoc[dir] = hasDoc[dir] || f.Doc != nil
			ast.Inspect(f, func(n ast.Node) bool {
				inspect(t, fset, dir, n, methods)
				return true
			})
		})
		for typ, n := range methods {
			if n > maxMethods {
				t.Logf("look: %s has %d methods", typ, n)
			}
		}
		for dir, ok := range hasDoc {
			if !ok {
				t.Errorf("%s/%s has no package comment", root, dir)
			}
		}
	}
}

func inspect(t *testing.T, fset *token.FileSet, dir string, n ast.Node, methods map[string]int) {
	switch n := n.(type) {
	case *ast.FuncDecl:
		if l := fset.Position(n.End()).Line - fset.Position(n.Pos()).Line; l > maxFunc {
			t.Logf("look: %s: %s is %d lines", fset.Position(n.Pos()), n.Name.Name, l)
		}
		if n.Recv != nil {
			methods[dir+"."+receiver(n.Recv.List[0].Type)]++
		} else if n.Name.Name == "init" {
			t.Errorf("%s: func init runs in every program that links the package; call a constructor", fset.Position(n.Pos()))
		}
	case *ast.InterfaceType:
		if n.Methods.NumFields() > maxIface {
			t.Logf("look: %s: interface with %d methods", fset.Position(n.Pos()), n.Methods.NumFields())
		}
	case *ast.StructType:
		for _, fl := range n.Fields.List {
			if s, ok := fl.Type.(*ast.SelectorExpr); ok && s.Sel.Name == "Context" {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "context" {
					t.Errorf("%s: context.Context in a struct", fset.Position(fl.Pos()))
				}
			}
		}
	}
}

func receiver(e ast.Expr) string {
	if s, ok := e.(*ast.StarExpr); ok {
		e = s.X
	}
	if i, ok := e.(*ast.Ident); ok {
		return i.Name
	}
	return "?"
}
