package postgres_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/postgres"
)

func TestMain(m *testing.M) { testserver.Main(m) }

var kind = testsql.Kind{
	Scheme: "postgres",
	Open:   postgres.Open,
	Start:  func(t testing.TB) *testserver.Server { return testserver.Postgres(t) },
	Pair:   testserver.PostgresPair,
	Admin:  mustAdmin,
	Cut:    cutAll,
}

var address, mustOpen = kind.URL, kind.MustOpen

// TestStore proves the contract, with two clients too, while the server is up and while it is frozen.
func TestStore(t *testing.T) {
	t.Parallel()
	const first = "logged"
	variants := map[string]string{first: ""}
	if testserver.Scale(0, 1) == 1 { // other tests of this package show where they differ
		variants["unprepared"], variants["unlogged"] = "&prepare=false", "&unlogged=true"
	}
	kind.Contract(t, first, variants)
}

func TestFailoverLoad(t *testing.T) {
	t.Parallel()
	kind.FailoverLoad(t)
}
