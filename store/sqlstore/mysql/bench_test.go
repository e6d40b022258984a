package mysql_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
)

// BenchmarkStore measures calls; see testsql.Bench. In "memory", writers of one table wait for each other, as MEMORY locks
// the table and InnoDB the row.
func BenchmarkStore(b *testing.B) {
	srv := testserver.MariaDB(b)
	for _, variant := range []struct{ name, options string }{
		{"innodb", "?sweep=never"}, {"unprepared", "?sweep=never&prepare=false"}, {"memory", "?sweep=never&engine=memory&table=m"},
	} {
		b.Run(variant.name, func(b *testing.B) { testsql.Bench(b, mustOpen(b, address(srv)+variant.options)) })
	}
}
