package postgres_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
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
