package mysql_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/mysql"
)

func TestMain(m *testing.M) { testserver.Main(m) }

var kind = testsql.Kind{
	Scheme: "mysql",
	Open:   mysql.Open,
	Start:  func(t testing.TB) *testserver.Server { return testserver.MariaDB(t) },
	Pair:   testserver.MariaDBPair,
	Admin:  mustAdmin,
	Cut:    cutAll,
}

var address, mustOpen = kind.URL, kind.MustOpen

// TestStore proves the contract, with two clients too, while the server is up and while it is frozen.
func TestStore(t *testing.T) {
	t.Parallel()
	const first = "innodb"
	variants := map[string]string{first: "", "memory": "&engine=memory"}
	if testserver.Scale(0, 1) == 1 { // other tests of this package show where it differs
		variants["unprepared"] = "&prepare=false"
	}
	kind.Contract(t, first, variants)
}

func TestFailoverLoad(t *testing.T) {
	t.Parallel()
	kind.FailoverLoad(t)
}
