// Package imports proves which package may import which, and what is linked into a program that uses the library.
// It consists of tests only.
package imports

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// root is this module's folder.
const root = "../.."

func TestImports(t *testing.T) {
	pkgs := mustLoad(t, root)
	if len(pkgs) < 2 || pkgs["driver"] == nil {
		t.Fatalf("found %d packages below %s, and not driver", len(pkgs), root)
	}
	for _, path := range slices.Sorted(maps.Keys(pkgs)) {
		for _, wrong := range check(*pkgs[path]) {
			t.Error(wrong)
		}
	}
}

func TestCheck(t *testing.T) {
	eleven := strings.Fields(strings.Repeat("f.go ", 11))
	tests := []struct {
		name string
		in   pkg
		want []string
	}{
		{"driver alone", pkg{path: "driver"}, nil},
		{"driver imports root", pkg{path: "driver", code: uses{".": "a.go"}},
			[]string{"driver (a.go) imports .: of this module it may import nothing"}},
		{"driver imports a library", pkg{path: "driver", clients: uses{"example.com/x": "a.go"}},
			[]string{"driver imports example.com/x: it may import no third-party module"}},
		{"root imports driver", pkg{path: ".", code: uses{"driver": "a.go"}}, nil},
		{"root imports a store", pkg{path: ".", code: uses{"store/memory": "a.go"}},
			[]string{". (a.go) imports store/memory: of this module it may import driver"}},
		{"root imports internal", pkg{path: ".", code: uses{"internal/merge": "a.go"}},
			[]string{". (a.go) imports internal/merge: of this module it may import driver"}},
		{"root's tests import a store", pkg{path: ".", tests: uses{"store/memory": "a_test.go"}}, nil},
		{"root has eleven files", pkg{path: ".", files: eleven},
			[]string{". has 11 files, want at most 10: " + strings.Join(eleven, ", ")}},
		{"root has ten files", pkg{path: ".", files: eleven[1:]}, nil},
		{"memory imports root", pkg{path: "store/memory", code: uses{".": "a.go"}},
			[]string{"store/memory (a.go) imports .: of this module it may import driver"}},
		{"filestore imports a library", pkg{path: "store/filestore", clients: uses{"golang.org/x/sys": "a.go"}},
			[]string{"store/filestore imports golang.org/x/sys: it may import no third-party module"}},
		{"a store with its client", pkg{path: "store/redisstore", code: uses{"driver": "a.go", ".": "a.go"},
			clients: uses{"example.com/x": "a.go"}}, nil},
		{"a store without a client", pkg{path: "store/redisstore"},
			[]string{"store/redisstore imports nothing: it may import exactly one third-party module, its client library"}},
		{"a store with two clients", pkg{path: "store/redisstore", clients: uses{"example.com/y": "a.go", "example.com/x": "b.go"}},
			[]string{"store/redisstore imports example.com/x, example.com/y: it may import exactly one third-party module, its client library"}},
		{"a store imports another", pkg{path: "store/redisstore", code: uses{"store/memory": "a.go"}, clients: uses{"example.com/x": "a.go"}},
			[]string{"store/redisstore (a.go) imports store/memory: of this module it may import ., driver, keyring, internal/..."}},
		{"Open imports the stores", pkg{path: "store", code: uses{"store/memory": "a.go", "store/redisstore": "a.go"}}, nil},
		{"the gateway imports a store", pkg{path: "gateway", code: uses{"store": "a.go"}},
			[]string{"gateway (a.go) imports store: of this module it may import gateway/..., ., driver, keyring, internal/..."}},
		{"the gateway imports cmd", pkg{path: "gateway", code: uses{"cmd/holdfast/demo": "a.go"}},
			[]string{"gateway (a.go) imports cmd/holdfast/demo: nothing imports cmd"}},
		{"the gateway's tests import cmd", pkg{path: "gateway", tests: uses{"cmd/holdfast": "a_test.go"}},
			[]string{"gateway (a_test.go) imports cmd/holdfast: nothing imports cmd"}},
		{"cmd imports everything", pkg{path: "cmd/holdfast", code: uses{".": "a.go", "gateway": "a.go", "store": "a.go",
			"storetest": "a.go", "cmd/holdfast/demo": "a.go"}, clients: uses{"example.com/x": "a.go", "example.com/y": "a.go"}}, nil},
		{"cmd imports a helper of tests", pkg{path: "cmd/holdfast", code: uses{"internal/testserver": "a.go"}},
			[]string{"cmd/holdfast (a.go) imports internal/testserver: only tests may import helpers of tests"}},
		{"cmd's tests import a helper of tests", pkg{path: "cmd/holdfast", tests: uses{"internal/testserver": "a_test.go"}}, nil},
		{"internal imports a public package", pkg{path: "internal/merge", code: uses{"driver": "a.go"}},
			[]string{"internal/merge (a.go) imports driver: of this module it may import internal/..."}},
		{"a helper of tests imports a public package", pkg{path: "internal/testserver", code: uses{"store/redisstore": "a.go"}}, nil},
		{"an example imports internal", pkg{path: "examples/basic", code: uses{".": "main.go", "internal/merge": "main.go"}},
			[]string{"examples/basic (main.go) imports internal/merge: of this module it may import ., driver, store/..., " +
				"sealed/..., keyring, gateway, cluster, server, admin"}},
		{"a new folder", pkg{path: "util"}, []string{"util has no rule: add one to internal/imports/rules_test.go"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, check(test.in)); diff != "" {
				t.Errorf("check(%q) (-want +got):\n%s", test.in.path, diff)
			}
		})
	}
}

// TestLoad reads a small module with one of everything that is easily missed.
func TestLoad(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, dir, map[string]string{
		"go.mod":                "module example.com/m\n\nrequire (\n\texample.com/client v1.2.3 // indirect\n\texample.com/client/v2 v2.0.0\n)\n",
		"root.go":               "package m\nimport _ \"example.com/m/driver\"\n",
		"driver/d.go":           "package driver\nimport _ \"net/http\"\n",
		"driver/d_windows.go":   "package driver\nimport _ \"example.com/m\"\n",
		"driver/d_test.go":      "package driver_test\nimport _ \"example.com/m/cmd/x\"\nimport _ \"example.com/client\"\n",
		"store/s.go":            "//go:build never\n\npackage store\nimport _ \"example.com/client/v2/deep\"\nimport _ \"example.com/clients\"\n",
		"bench/go.mod":          "module example.com/m/bench\n",
		"bench/b.go":            "package bench\nimport _ \"example.com/m/cmd/x\"\n",
		"store/testdata/bad.go": "not Go",
	})
	want := map[string]*pkg{
		".": {path: ".", files: []string{"root.go"}, code: uses{"driver": "root.go"}, tests: uses{}, clients: uses{}},
		"driver": {path: "driver", files: []string{"d.go", "d_windows.go"}, code: uses{".": "d_windows.go"},
			tests: uses{"cmd/x": "d_test.go"}, clients: uses{}},
		"store": {path: "store", files: []string{"s.go"}, code: uses{}, tests: uses{},
			clients: uses{"example.com/client/v2": "s.go", "example.com/clients": "s.go"}},
	}
	if diff := cmp.Diff(want, mustLoad(t, dir), cmp.AllowUnexported(pkg{})); diff != "" {
		t.Errorf("load (-want +got):\n%s", diff)
	}
}

// TestDependencies proves that docs/DEPENDENCIES.md lists the modules of go.mod, in their versions, and no others.
func TestDependencies(t *testing.T) {
	m, err := readModule(root)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/DEPENDENCIES.md"))
	if err != nil {
		t.Fatal(err)
	}
	listed := make(map[string]string)
	for _, row := range regexp.MustCompile(`(?m)^\| (\S+\.\S+/\S+) \| (v\S+) \|`).FindAllStringSubmatch(string(text), -1) {
		listed[row[1]] = row[2]
	}
	if diff := cmp.Diff(m.requires, listed); diff != "" {
		t.Errorf("docs/DEPENDENCIES.md differs from go.mod (-go.mod +docs):\n%s", diff)
	}
}

// TestExamples proves that every example has a test, which runs it.
func TestExamples(t *testing.T) {
	pkgs := mustLoad(t, root)
	for _, path := range slices.Sorted(maps.Keys(pkgs)) {
		if !matches("examples/...", path) {
			continue
		}
		if tests, _ := filepath.Glob(filepath.Join(root, path, "*_test.go")); len(tests) == 0 {
			t.Errorf("%s has no test: add one that runs it", path)
		}
	}
}

func mustLoad(t *testing.T, dir string) map[string]*pkg {
	t.Helper()
	m, err := readModule(dir)
	if err != nil {
		t.Fatal(err)
	}
	pkgs, err := m.load()
	if err != nil {
		t.Fatal(err)
	}
	return pkgs
}

// mustWrite writes the files, named by their paths, below dir.
func mustWrite(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
}
