package mysql_test

import (
	"database/sql"
	"fmt"
	"testing"
)

// cutAll has a server end all connections but that of admin and its replicas': also those that are just logging in.
func cutAll(t testing.TB, admin *sql.DB) {
	t.Helper()
	rows, err := admin.QueryContext(t.Context(), "SELECT id FROM information_schema.processlist "+
		"WHERE id <> CONNECTION_ID() AND user NOT IN ('system user', 'event_scheduler') AND command NOT LIKE 'Binlog%'")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		_, _ = admin.ExecContext(t.Context(), fmt.Sprintf("KILL CONNECTION %d", id)) // it may have ended
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}
