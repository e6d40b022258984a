// Testreport runs the tests of every module of this repository and prints a line per package, the output of the
// tests that failed, the list of what was not run, and the totals. It exits 1 if a test failed, and, with CI=true, if
// anything was not run.
//
// Its arguments are passed on to go test: go run ./internal/testreport -run Login
package main

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	modules, err := findModules(".")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	r := newReport(os.Stdout)
	race := raceWorks()
	if !race {
		r.notRun("the race detector", "it needs cgo and a C compiler with its headers (Debian: apt-get install gcc libc6-dev)")
		fmt.Println(r.skips[0])
	}
	for _, dir := range modules {
		args := []string{"test", "-json", "-count=1", "-timeout=30m"} // a busy machine, and databases
		switch {
		case filepath.Base(dir) == "bench":
			// It compares times, which the race detector distorts; only that it works is tested here.
			args = append(args, "-short")
		case race:
			args = append(args, "-race")
		}
		r.run(dir, append(append(args, os.Args[1:]...), "./..."))
	}
	if !r.finish() {
		os.Exit(1)
	}
}

// findModules returns the folders below root that have a go.mod, sorted, so that root comes first.
func findModules(root string) (dirs []string, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".")):
			return filepath.SkipDir
		case d.Name() == "go.mod":
			dirs = append(dirs, filepath.Dir(path))
		}
		return nil
	})
	slices.Sort(dirs)
	return dirs, err
}

// raceWorks reports whether a program can be built with the race detector here.
func raceWorks() bool {
	return exec.Command("go", "build", "-race", "-o", os.DevNull, "./internal/testreport").Run() == nil
}

// run runs the go command in dir and reads what it prints as the output of go test -json.
func (r *report) run(dir string, args []string) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	var errors strings.Builder
	cmd.Stderr = &errors
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.fail(dir, err.Error())
		return
	}
	failed := r.failed
	r.read(out)
	// go test has reported a failure of its own only if no test and no package accounts for it.
	if err := cmd.Wait(); err != nil && r.failed == failed {
		r.fail("go "+strings.Join(args, " ")+" in "+dir, cmp.Or(errors.String(), err.Error()))
	} else if errors.Len() > 0 {
		fmt.Fprint(r.out, errors.String())
	}
}
