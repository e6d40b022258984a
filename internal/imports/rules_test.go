package imports

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A rule says what the code of a part of the tree, tests aside, may import besides the standard library. Its paths
// are relative to the module: "." is the root package, "store/..." is store and everything below it, "internal/test*"
// is everything that begins so.
type rule struct {
	part    string
	may     []string
	clients limit
}

// limit says how many third-party modules one package may import.
type limit string

const (
	none       limit = "no third-party module"
	exactlyOne limit = "exactly one third-party module, its client library"
	several    limit = "third-party modules"
)

// below is what everything above the root package may import.
var below = []string{".", "driver", "keyring", "internal/..."}

// rules hold the direction of docs/ARCHITECTURE.md. The first that matches a package applies to it. A package that
// none matches is refused, so that a new folder is given its place here first.
var rules = []rule{
	{"driver", nil, none},
	{".", []string{"driver"}, none},
	{"storetest", []string{".", "driver"}, several},

	{"store", []string{".", "driver", "internal/storeurl", "keyring", "sealed/...", "store/..."}, none},
	{"store/memory", []string{"driver"}, none},
	{"store/filestore", []string{"driver", "internal/..."}, none},
	{"store/transfer", []string{".", "driver"}, none},
	{"store/sqlstore", below, none}, // over database/sql; its subpackages have the clients
	{"store/sqlstore/...", append([]string{"store/sqlstore"}, below...), exactlyOne},
	{"store/...", below, exactlyOne},
	{"sealed", []string{"driver", "keyring"}, none},
	{"sealed/cookie", append([]string{"sealed"}, below...), none},
	{"sealed/sealtest", []string{"driver", "keyring"}, several},
	{"sealed/...", append([]string{"sealed"}, below...), exactlyOne},
	{"keyring", below, several},

	{"gateway/...", append([]string{"gateway/..."}, below...), several},
	{"cluster/...", append([]string{"cluster/..."}, below...), several},
	{"server/...", append([]string{"server/..."}, below...), several},
	{"admin/...", append([]string{"admin/..."}, below...), several},
	{"interop/...", below, several},

	{"cmd/...", []string{"..."}, several},
	{"examples/...", []string{".", "driver", "store/...", "sealed/...", "keyring", "gateway", "cluster", "server", "admin"}, several},

	// Helpers of tests may import what they help to test; see testHelpers.
	{testHelpers, []string{"..."}, several},
	{"internal/...", []string{"internal/..."}, several},
}

// testHelpers is the part that only tests, and other helpers of tests, may import.
const testHelpers = "internal/test*"

// matches reports whether the package path belongs to the part.
func matches(part, path string) bool {
	if prefix, ok := strings.CutSuffix(part, "*"); ok {
		return strings.HasPrefix(path, prefix)
	}
	if tree, ok := strings.CutSuffix(part, "..."); ok {
		return strings.HasPrefix(path+"/", tree)
	}
	return path == part
}

// A pkg is what the Go files of one folder import, for every platform: build constraints are ignored.
type pkg struct {
	path    string
	files   []string // tests excepted
	code    uses     // packages of this module that files import
	tests   uses     // packages of this module that the tests import
	clients uses     // third-party modules that files import
}

// uses maps what is imported to one of the files that do.
type uses map[string]string

// maxRootFiles keeps the root package small enough to be read in one sitting.
const maxRootFiles = 10

// check returns what is wrong with p, one sentence each.
func check(p pkg) (wrong []string) {
	complain := func(format string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("%s "+format, append([]any{p.path}, args...)...))
	}
	i := slices.IndexFunc(rules, func(r rule) bool { return matches(r.part, p.path) })
	if i < 0 {
		complain("has no rule: add one to internal/imports/rules_test.go")
		return wrong
	}
	r := rules[i]
	allowed := func(target string) bool {
		return slices.ContainsFunc(r.may, func(part string) bool { return matches(part, target) })
	}
	for _, target := range slices.Sorted(maps.Keys(p.code)) {
		switch file := p.code[target]; {
		case matches("cmd/...", target) && r.part != "cmd/...":
			complain("(%s) imports %s: nothing imports cmd", file, target)
		case matches(testHelpers, target) && r.part != testHelpers:
			complain("(%s) imports %s: only tests may import helpers of tests", file, target)
		case !allowed(target):
			complain("(%s) imports %s: of this module it may import %s", file, target, list(r.may))
		}
	}
	for _, target := range slices.Sorted(maps.Keys(p.tests)) {
		if matches("cmd/...", target) && r.part != "cmd/..." {
			complain("(%s) imports %s: nothing imports cmd", p.tests[target], target)
		}
	}
	n := len(p.clients)
	if r.clients == none && n > 0 || r.clients == exactlyOne && n != 1 {
		complain("imports %s: it may import %s", list(slices.Sorted(maps.Keys(p.clients))), r.clients)
	}
	if p.path == "." && len(p.files) > maxRootFiles {
		complain("has %d files, want at most %d: %s", len(p.files), maxRootFiles, list(p.files))
	}
	return wrong
}

func list(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}
