package mysql_test

import (
	"strconv"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
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

// BenchmarkSize reports what a session takes; see testsql.BenchSize.
func BenchmarkSize(b *testing.B) {
	srv := testserver.MariaDB(b, testserver.MariaDBOptions{Config: []string{"max-heap-table-size = 512M"}})
	admin := mustAdmin(b, srv)
	for _, engine := range []string{"innodb", "memory"} {
		b.Run(engine, func(b *testing.B) {
			table := ""
			open := func(b *testing.B, size int) *sqlstore.Store {
				table = engine + strconv.Itoa(size)
				options := "?sweep=never&engine=" + engine + "&table=" + table
				if engine == "memory" {
					options += "&max_bytes=65000"
				}
				return mustOpen(b, address(srv)+options)
			}
			testsql.BenchSize(b, open, func() { testsql.MustExec(b, admin, "ANALYZE TABLE "+table) })
		})
	}
}
