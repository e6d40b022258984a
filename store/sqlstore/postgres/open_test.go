package postgres_test

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/postgres"
)

func TestURL(t *testing.T) {
	kind.BadURLs(t, postgres.Schema,
		testsql.BadURL{URL: "postgres://u@h,h:5432/db", Want: "given twice"},
		testsql.BadURL{URL: "postgres://u@h/db?engine=memory", Want: "unknown"},
		testsql.BadURL{URL: "postgres://u@h/db?unlogged=yes", Want: "want true or false"})
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	srv := testserver.Postgres(t)
	admin := mustAdmin(t, srv)
	secure := testserver.Postgres(t, testserver.PostgresOptions{TLS: true})
	for _, q := range []string{
		"REVOKE CONNECT ON DATABASE holdfast FROM PUBLIC", "CREATE DATABASE empty",
		"CREATE USER nobody PASSWORD 's3cret'", "CREATE USER reader PASSWORD 's3cret'", "GRANT CONNECT ON DATABASE holdfast TO reader",
		"CREATE TABLE orders (id BIGINT PRIMARY KEY, total INT)",
		"CREATE TABLE nokey (id BYTEA NOT NULL, revision BIGINT, seen BIGINT, expires BIGINT, sweep INT, data BYTEA)",
		"CREATE TABLE pair (id BYTEA NOT NULL, revision BIGINT, seen BIGINT, expires BIGINT, sweep INT, data BYTEA, PRIMARY KEY (id, revision))",
		"CREATE TABLE short (id BYTEA PRIMARY KEY, revision BIGINT, seen BIGINT, expires BIGINT, sweep INT)",
		"CREATE TABLE extra (id BYTEA PRIMARY KEY, revision BIGINT, seen BIGINT, expires BIGINT, sweep INT, data BYTEA, tenant INT NOT NULL)",
		"CREATE TABLE narrow (id BYTEA PRIMARY KEY, revision INT, seen BIGINT, expires BIGINT, sweep INT, data BYTEA)",
		"CREATE VIEW look AS SELECT 1 AS id",
	} {
		testsql.MustExec(t, admin, q)
	}
	mustOpen(t, address(srv)+"?table=newer")
	testsql.MustExec(t, admin, "UPDATE newer_meta SET value = 2 WHERE name = 'schema'")
	mustOpen(t, address(srv)+"?table=newer2")
	testsql.MustExec(t, admin, "GRANT SELECT ON newer2, newer2_meta TO reader")
	with := func(user, rest string) string { return "postgres://" + user + "@" + srv.Addr + rest }
	ca := "?ca_file=" + secure.TLS.CAFile
	for _, tt := range []struct {
		name, url   string
		want        string
		unavailable bool
	}{
		{"nobody listens", "postgres://u:s3cret@" + testserver.FreeAddr(t) + "/db", "connection refused; is postgres running there?", true},
		{"no such host", "postgres://u:s3cret@no-such-host.invalid/db", `host "no-such-host.invalid" cannot be resolved`, true},
		{"wrong password", with("holdfast:wr0ng", "/holdfast"), "wrong user or password", false},
		{"no password", with("holdfast", "/holdfast"), "wrong user or password", false},
		{"wrong user", with("hunter:s3cret", "/holdfast"), "wrong user or password", false},
		{"no database", with("holdfast:s3cret", "/shop"), "no such database", false},
		{"no right to the database", with("nobody:s3cret", "/holdfast"), "permission denied for database", false},
		{"no table and no right to make it", with("reader:s3cret", "/holdfast"), "run this as a user who may:\n  holdfast store migrate 'postgres://reader@", false},
		{"print", with("reader:s3cret", "/holdfast?table=x"), "store migrate --print 'postgres://reader@" + srv.Addr + "/holdfast?table=x'", false},
		{"reads only", with("reader:s3cret", "/holdfast?table=newer2"), "GRANT SELECT, INSERT, UPDATE, DELETE ON newer2 TO reader", false},
		{"somebody else's table", with("holdfast:s3cret", "/holdfast?table=orders"), "table orders is not one of Holdfast's: column id is bigint, want bytea", false},
		{"no key", with("holdfast:s3cret", "/holdfast?table=nokey"), "primary key", false},
		{"another key", with("holdfast:s3cret", "/holdfast?table=pair"), "primary key", false},
		{"a column too few", with("holdfast:s3cret", "/holdfast?table=short"), "no column data", false},
		{"a column too many", with("holdfast:s3cret", "/holdfast?table=extra"), "column tenant is not known and must not be empty", false},
		{"another type", with("holdfast:s3cret", "/holdfast?table=narrow"), "column revision is integer, want bigint", false},
		{"a view", with("holdfast:s3cret", "/holdfast?table=look"), "column id is", false},
		{"a newer schema", with("holdfast:s3cret", "/holdfast?table=newer"), "schema version 2, this release knows 1", false},
		{"plain to a server with TLS only", "postgres://holdfast:s3cret@" + secure.Addr + "/holdfast", "add tls=verify", false},
		{"TLS to a server without", with("holdfast:s3cret", "/holdfast?tls=verify"), "refused TLS", true},
		{"unknown CA", "postgres://holdfast:s3cret@" + secure.Addr + "/holdfast?tls=verify", "certificate", true},
		{"wrong name", "postgres://holdfast:s3cret@" + secure.Addr + "/holdfast" + ca + "&server_name=other", "certificate", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := postgres.Open(t.Context(), tt.url)
			testsql.WantOpenError(t, tt.url, err, tt.want, tt.unavailable)
		})
	}
	for _, options := range []string{ca, "?tls=insecure", ca + "&cert_file=" + secure.TLS.CertFile + "&key_file=" + secure.TLS.KeyFile, ca + "&server_name=localhost"} {
		s := mustOpen(t, "postgres://holdfast:s3cret@"+secure.Addr+"/holdfast"+options)
		testsql.MustSave(t, s, testsql.ID(len(options)), testsql.Record("ada"), 0)
	}
}

// TestRights grants what the documentation and the error say, and no more.
func TestRights(t *testing.T) {
	t.Parallel()
	srv := testserver.Postgres(t)
	admin := mustAdmin(t, srv)
	password := "s3cret@/?#'\"\\ é"
	testsql.MustExec(t, admin, `CREATE USER "o'app" PASSWORD 's3cret@/?#''"\ é'`)
	url := (&url.URL{Scheme: "postgres", User: url.UserPassword("o'app", password), Host: srv.Addr, Path: "/holdfast"}).String()
	if err := postgres.Migrate(t.Context(), address(srv)); err != nil {
		t.Fatal(err)
	}
	testsql.MustExec(t, admin, `GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast_sessions TO "o'app"`)
	_, err := postgres.Open(t.Context(), url)
	testsql.WantOpenError(t, "no right to the second table", err, `GRANT SELECT, UPDATE ON holdfast_sessions_meta TO "o'app"`, false)
	testsql.MustExec(t, admin, `GRANT SELECT, UPDATE ON holdfast_sessions_meta TO "o'app"`)
	s := mustOpen(t, url)
	for _, c := range testsql.Calls(s) {
		if err := c.Do(t.Context()); err != nil && err != c.Want {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
	if _, err := s.Sweep(t.Context(), nil); err != nil {
		t.Errorf("Sweep = %v", err)
	}
	if st, err := s.Stat(t.Context()); err != nil || st.Bytes <= 0 {
		t.Errorf("Stat = %+v, %v", st, err)
	}

	// The printed schema is what Migrate runs, and the file of a password is read before each connection.
	printed, err := postgres.Schema("postgres://app@h/holdfast?table=printed")
	if err != nil {
		t.Fatal(err)
	}
	testsql.MustExec(t, admin, printed)
	testsql.MustExec(t, admin, `GRANT ALL ON printed, printed_meta TO "o'app"`)
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, "postgresql://o%27app@"+srv.Addr+"/holdfast?table=printed&password_file="+file)
}

func TestPage(t *testing.T) {
	schema, err := postgres.Schema("postgres://app@h/shop")
	if err != nil {
		t.Fatal(err)
	}
	testsql.Page(t, "postgres.md", schema)
}
