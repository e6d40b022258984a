package imports

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// user is a program that uses the library with the memory store.
const user = `package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

var visits = holdfast.NewField[int]("visits")

func main() {
	sessions, err := holdfast.New(memory.New(), holdfast.Config{})
	if err != nil {
		panic(err)
	}
	h := sessions.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		if err != nil {
			panic(err)
		}
		if err := visits.Set(s, 1); err != nil {
			panic(err)
		}
	}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	fmt.Println(len(w.Result().Cookies()))
}
`

// TestNoThirdParty builds a program that uses the root package and the memory store, with an empty module cache and
// nowhere to download from, runs it, and looks at the modules that the linker recorded.
func TestNoThirdParty(t *testing.T) {
	repo, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	binary := mustBuild(t, map[string]string{
		"go.mod": "module example.com/user\n\ngo 1.26.0\n\n" +
			"require github.com/holdfast-sessions/holdfast v0.0.0\n\n" +
			"replace github.com/holdfast-sessions/holdfast => " + repo + "\n",
		"main.go": user,
	})
	if diff := cmp.Diff([]string{"github.com/holdfast-sessions/holdfast"}, mustModules(t, binary)); diff != "" {
		t.Errorf("modules linked (-want +got):\n%s", diff)
	}
	out, err := exec.Command(binary).CombinedOutput()
	if err != nil || string(out) != "1\n" {
		t.Errorf("the program printed %q (%v), want 1 cookie", out, err)
	}
}

// TestModulesLinked proves that mustModules sees a module that is linked, and not one that is only required.
func TestModulesLinked(t *testing.T) {
	binary := mustBuild(t, map[string]string{
		"go.mod": "module example.com/user\n\ngo 1.26.0\n\n" +
			"require (\n\texample.com/linked v0.0.0\n\texample.com/idle v0.0.0\n)\n\n" +
			"replace (\n\texample.com/linked => ./linked\n\texample.com/idle => ./idle\n)\n",
		"main.go":       "package main\n\nimport _ \"example.com/linked\"\n\nfunc main() {}\n",
		"linked/go.mod": "module example.com/linked\n\ngo 1.26.0\n",
		"linked/a.go":   "package linked\n",
		"idle/go.mod":   "module example.com/idle\n\ngo 1.26.0\n",
		"idle/a.go":     "package idle\n",
	})
	if diff := cmp.Diff([]string{"example.com/linked"}, mustModules(t, binary)); diff != "" {
		t.Errorf("modules linked (-want +got):\n%s", diff)
	}
}

// mustBuild builds the main package in files and returns the path of the program.
func mustBuild(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	mustWrite(t, dir, files)
	binary := filepath.Join(dir, "program.exe")
	cmd := exec.Command("go", "build", "-o", binary, ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOMODCACHE="+filepath.Join(dir, "empty"), "GOPROXY=off", "GOFLAGS=", "GOWORK=off", "GOTOOLCHAIN=local")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return binary
}

// mustModules returns the modules linked into the program, its own excepted.
func mustModules(t *testing.T, binary string) (modules []string) {
	t.Helper()
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range info.Deps {
		modules = append(modules, m.Path)
	}
	return modules
}
