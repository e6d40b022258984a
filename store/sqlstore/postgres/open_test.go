package postgres_test

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/postgres"
)

func openErr(t testing.TB, url string) (*sqlstore.Store, error) {
	return postgres.Open(t.Context(), url)
}

func TestURL(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cert := testserver.NewCertificates(t)
	for _, tt := range []struct{ url, want string }{
		{"", "want postgres://"},
		{"localhost", "want postgres://"},
		{"http://u@h/db", "want postgres://"},
		{"postgres:u@h/db", "want postgres://"},
		{"postgres://u@/db", "no host"},
		{"postgres://u@h", "names no database"},
		{"postgres://u@h/a/b", "names no database"},
		{"postgres://h/db", "names no user"},
		{"postgres://u@h:0/db", "port 0"},
		{"postgres://u@h,,h2/db", "number 2 is empty"},
		{"postgres://u@h,h:5432/db", "given twice"},
		{"postgres://u@h/db?tabel=x", `option "tabel" unknown, did you mean "table"?`},
		{"postgres://u@h/db?sslmode=require", "unknown, did you mean"},
		{"postgres://u@h/db?table=a&table=b", "given 2 times"},
		{"postgres://u@h/db?table=a.b", "small letters"},
		{"postgres://u@h/db?table=Sessions", "small letters"},
		{"postgres://u@h/db?table=a%60b", "small letters"},
		{"postgres://u@h/db?table=" + strings.Repeat("a", 49), "small letters"},
		{"postgres://u@h/db?sweep=0s", "want a duration between 1s and 24h"},
		{"postgres://u@h/db?sweep=off", "want a duration"},
		{"postgres://u@h/db?max_conns=0", "between 1 and 1000"},
		{"postgres://u@h/db?connect_timeout=1h", "want a duration"},
		{"postgres://u@h/db?prepare=no", "want true or false"},
		{"postgres://u@h/db?engine=memory", "unknown"},
		{"postgres://u@h/db?unlogged=yes", "want true or false"},
		{"postgres://u@h/db?tls=require", "want off, verify, or insecure"},
		{"postgres://u@h/db?tls=off&ca_file=" + cert.CAFile, "want tls=verify"},
		{"postgres://u@h/db?ca_file=/nonexistent", "no such file"},
		{"postgres://u@h/db?ca_file=" + empty, "no certificate"},
		{"postgres://u@h/db?server_name=", "it is empty"},
		{"postgres://u@h/db?cert_file=" + cert.CertFile, "want both or neither"},
		{"postgres://u@h/db?cert_file=" + cert.KeyFile + "&key_file=" + cert.CertFile, "cert_file and key_file"},
		{"postgres://u@h/db?password_file=/nonexistent", "no such file"},
		{"postgres://u@h/db?password_file=" + empty, "is empty"},
		{"postgres://u:s3cret@h/db?password_file=" + cert.CAFile, "want one of them"},
		{"postgres://u@h/db?password=s3cret", "password_file="},
		{"postgres://u:s3cret#hunter2@h/db", "%23"},
		{"postgres://u:s3cret/hunter2@h/db", "%40"},
		{"postgres://u:s3cret?hunter2@h/db", "%40"},
		{"postgres://u:s3cret%@h/db", "malformed"},
	} {
		_, err := openErr(t, tt.url)
		testsql.WantOpenError(t, tt.url, err, tt.want, false)
		if _, err := postgres.Schema(tt.url); err == nil {
			t.Errorf("Schema(%s) succeeds", tt.url)
		}
	}
}

func TestOpenErrors(t *testing.T) {
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
		{"nobody listens", "postgres://u:s3cret@" + mustFreeAddr(t) + "/db", "connection refused; is postgres running there?", true},
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
			_, err := openErr(t, tt.url)
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
	srv := testserver.Postgres(t)
	admin := mustAdmin(t, srv)
	password := "s3cret@/?#'\"\\ é"
	testsql.MustExec(t, admin, `CREATE USER "o'app" PASSWORD 's3cret@/?#''"\ é'`)
	url := (&url.URL{Scheme: "postgres", User: url.UserPassword("o'app", password), Host: srv.Addr, Path: "/holdfast"}).String()
	if err := postgres.Migrate(t.Context(), address(srv)); err != nil {
		t.Fatal(err)
	}
	testsql.MustExec(t, admin, `GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast_sessions TO "o'app"`)
	_, err := openErr(t, url)
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
