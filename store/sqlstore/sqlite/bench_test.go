package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testsql"
)

// BenchmarkStore measures calls; see testsql.Bench.
func BenchmarkStore(b *testing.B) {
	for _, sync := range []string{"normal", "full"} {
		b.Run(sync, func(b *testing.B) {
			testsql.Bench(b, mustOpen(b, "sqlite:"+filepath.Join(b.TempDir(), "sessions.db")+"?sweep=never&sync="+sync))
		})
	}
}
