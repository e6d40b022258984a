package postgres_test

import (
	"strconv"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

// BenchmarkStore measures calls; see testsql.Bench.
func BenchmarkStore(b *testing.B) {
	srv := testserver.Postgres(b)
	for _, variant := range []struct{ name, options string }{
		{"logged", "?sweep=never"}, {"unprepared", "?sweep=never&prepare=false"}, {"unlogged", "?sweep=never&unlogged=true&table=u"},
	} {
		b.Run(variant.name, func(b *testing.B) { testsql.Bench(b, mustOpen(b, address(srv)+variant.options)) })
	}
}

// BenchmarkSize reports what a session takes; see testsql.BenchSize.
func BenchmarkSize(b *testing.B) {
	srv := testserver.Postgres(b)
	open := func(b *testing.B, size int) *sqlstore.Store {
		return mustOpen(b, address(srv)+"?sweep=never&table=t"+strconv.Itoa(size))
	}
	testsql.BenchSize(b, open, func() {})
}
