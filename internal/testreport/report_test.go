package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestReport runs real go test on a module in which everything happens that can happen to a package.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, dir, map[string]string{
		"go.mod":     "module m\n\ngo 1.26.0\n",
		"doc/d.go":   "package doc\n",
		"ok/o.go":    "package ok\n",
		"bad/b.go":   "package bad\n\nvar x int = \"\"\n",
		"quiet/q.go": "package quiet\n",
		"ok/o_test.go": `package ok
import "testing"
func TestPass(t *testing.T) { t.Log("unseen"); t.Run("sub", func(t *testing.T) {}) }
func TestSkip(t *testing.T) { t.Skip("NOT RUN: redis-server is not installed") }
func TestSkipSub(t *testing.T) { t.Run("lister", func(t *testing.T) { t.Skip("no reason: none") }) }
`,
		"bad/b_test.go": "package bad\nimport \"testing\"\nfunc TestX(t *testing.T) {}\n",
		"fail/f_test.go": `package fail
import ("fmt"; "testing")
func TestPass(t *testing.T) { t.Log("unseen") }
func TestFail(t *testing.T) {
	t.Run("good", func(t *testing.T) { t.Log("unseen") })
	t.Run("evil", func(t *testing.T) { fmt.Println("printed"); t.Error("seen") })
}
`,
		"panics/p_test.go": "package panics\nimport \"testing\"\nfunc TestPanic(t *testing.T) { panic(\"seen\") }\n",
		"main/m_test.go":   "package main\nimport (\"os\"; \"testing\")\nfunc TestX(t *testing.T) {}\nfunc TestMain(m *testing.M) { m.Run(); println(\"leak\"); os.Exit(1) }\n",
	})
	var out strings.Builder
	r := newReport(&out)
	r.run(dir, []string{"test", "-json", "./..."})
	r.finish()

	for _, want := range []string{
		"ok    m/ok ",
		"FAIL  m/bad ", "bad/b.go:3:13: cannot use",
		"FAIL  m/fail ", "      printed\n", "f_test.go:6: seen\n", "--- FAIL: TestFail/evil",
		"FAIL  m/panics ", "panic: seen", "p_test.go:3",
		"FAIL  m/main ", "      leak\n",
		"\nNOT RUN: m/ok TestSkip: redis-server is not installed\nNOT RUN: m/ok TestSkipSub/lister: no reason: none\n",
		"\n6 passed, 5 failed, 2 skipped\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q", want)
		}
	}
	for _, not := range []string{"unseen", "m/doc", "=== RUN"} {
		if strings.Contains(out.String(), not) {
			t.Errorf("the report contains %q", not)
		}
	}
	if t.Failed() {
		t.Logf("the report:\n%s", out.String())
	}
}

// TestReportOfNothing proves that a run without results is a failure.
func TestReportOfNothing(t *testing.T) {
	tests := []struct {
		name, dir string
		args      []string
		want      string
	}{
		{"no module", t.TempDir(), []string{"test", "-json", "./..."}, "0 passed, 1 failed, 0 skipped\n"},
		{"no folder", "testdata/absent", []string{"test", "-json", "./..."}, "0 passed, 1 failed, 0 skipped\n"},
		{"no test", ".", []string{"test", "-json", "-run=^$", "."}, "0 passed, 0 failed, 0 skipped\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			r := newReport(&out)
			r.run(test.dir, test.args)
			if r.finish() {
				t.Error("finish() = true, want false")
			}
			if !strings.HasSuffix(out.String(), test.want) {
				t.Errorf("report = %q, want it to end in %q", out.String(), test.want)
			}
		})
	}
}

func TestReportCutOff(t *testing.T) {
	var out strings.Builder
	r := newReport(&out)
	r.read(strings.NewReader(`{"Action":"start","Package":"m"}
{"Action":"run","Package":"m","Test":"TestX"}
{"Action":"output","Package":"m","Test":"TestX","Output":"last words\n"}
`))
	if r.finish() {
		t.Error("finish() = true, want false")
	}
	if !strings.HasPrefix(out.String(), "FAIL  m 0.0s\n      last words\n") {
		t.Errorf("report = %q, want the package to have failed", out.String())
	}
}

func TestFinish(t *testing.T) {
	tests := []struct {
		name                    string
		ci                      string
		passed, failed, skipped int
		want                    bool
	}{
		{"all passed", "", 2, 0, 0, true},
		{"all passed in CI", "true", 2, 0, 0, true},
		{"skipped", "", 2, 0, 1, true},
		{"skipped in CI", "true", 2, 0, 1, false},
		{"failed", "", 2, 1, 0, false},
		{"nothing", "", 0, 0, 0, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("CI", test.ci)
			r := newReport(io.Discard)
			r.passed, r.failed, r.skipped = test.passed, test.failed, test.skipped
			if got := r.finish(); got != test.want {
				t.Errorf("finish() = %v, want %v", got, test.want)
			}
		})
	}
}

func TestFindModules(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, dir, map[string]string{"go.mod": "", "bench/go.mod": "", "a/testdata/go.mod": "", ".x/go.mod": "", "z/a.go": ""})
	got, err := findModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{dir, filepath.Join(dir, "bench")}; !slices.Equal(got, want) {
		t.Errorf("findModules = %v, want %v", got, want)
	}
}

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
