package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

// BenchmarkStore measures calls; see testsql.Bench.
func BenchmarkStore(b *testing.B) {
	for _, sync := range []string{"normal", "full"} {
		b.Run(sync, func(b *testing.B) {
			testsql.Bench(b, mustOpen(b, "sqlite:"+filepath.Join(b.TempDir(), "sessions.db")+"?sweep=never&sync="+sync))
		})
	}
}

// BenchmarkSize reports what a session takes; see testsql.BenchSize.
func BenchmarkSize(b *testing.B) {
	open := func(b *testing.B, size int) *sqlstore.Store {
		return mustOpen(b, "sqlite:"+filepath.Join(b.TempDir(), "sessions.db")+"?sweep=never")
	}
	testsql.BenchSize(b, open, func() {})
}
