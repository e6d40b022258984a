package imports

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A module is what its go.mod says.
type module struct {
	dir, path string
	requires  map[string]string // third-party module to version
}

// readModule reads dir/go.mod.
func readModule(dir string) (module, error) {
	text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return module{}, err
	}
	m := module{dir: dir, requires: make(map[string]string)}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "//")
		switch f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require ")); {
		case len(f) == 2 && f[0] == "module":
			m.path = f[1]
		case len(f) == 2 && strings.HasPrefix(f[1], "v"):
			m.requires[f[0]] = f[1]
		}
	}
	return m, nil
}

// client returns the module that provides a third-party package: the longest one that its path begins with.
func (m module) client(path string) (client string) {
	for name := range m.requires {
		if strings.HasPrefix(path+"/", name+"/") && len(name) > len(client) {
			client = name
		}
	}
	if client == "" {
		return path
	}
	return client
}

// load reads the imports of every package of the module, leaving out testdata and modules within it. It reads the
// files itself, as `go list` does not see those of other platforms and go test would cache a stale answer.
func (m module) load() (map[string]*pkg, error) {
	pkgs := make(map[string]*pkg)
	err := filepath.WalkDir(m.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != m.dir && ignored(path) {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		dir, err := filepath.Rel(m.dir, filepath.Dir(path))
		if err != nil {
			return err
		}
		dir = filepath.ToSlash(dir)
		if pkgs[dir] == nil {
			pkgs[dir] = &pkg{path: dir, code: make(uses), tests: make(uses), clients: make(uses)}
		}
		return m.add(pkgs[dir], path)
	})
	return pkgs, err
}

// ignored reports whether the go command leaves the folder out of the module.
func ignored(dir string) bool {
	name := filepath.Base(dir)
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil || name == "testdata" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")
}

// add lays the imports of one file over p.
func (m module) add(p *pkg, path string) error {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		return err
	}
	name, within := filepath.Base(path), p.code
	test := strings.HasSuffix(name, "_test.go")
	if test {
		within = p.tests
	} else {
		p.files = append(p.files, name)
	}
	for _, spec := range f.Imports {
		target, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		first, _, _ := strings.Cut(target, "/")
		switch rel, own := strings.CutPrefix(target, m.path+"/"); {
		case target == m.path:
			within["."] = name
		case own:
			within[rel] = name
		case strings.Contains(first, ".") && !test:
			p.clients[m.client(target)] = name
		}
	}
	return nil
}
