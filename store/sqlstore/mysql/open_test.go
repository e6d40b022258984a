package mysql_test

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/mysql"
)

func TestURL(t *testing.T) {
	kind.BadURLs(t, mysql.Schema,
		testsql.BadURL{URL: "mysql://u@h,h:3306/db", Want: "given twice"},
		testsql.BadURL{URL: "mysql://u@h/db?engine=myisam", Want: "want innodb or memory"},
		testsql.BadURL{URL: "mysql://u@h/db?unlogged=true", Want: "unknown"})
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	srv := testserver.MariaDB(t)
	admin := mustAdmin(t, srv)
	cert := testserver.NewCertificates(t)
	secure := testserver.MariaDB(t, testserver.MariaDBOptions{Config: []string{
		"ssl-ca = " + cert.CAFile, "ssl-cert = " + cert.CertFile, "ssl-key = " + cert.KeyFile, "require-secure-transport = ON"}})
	for _, q := range []string{
		"CREATE USER nobody@'%' IDENTIFIED BY 's3cret'",
		"CREATE USER reader@'%' IDENTIFIED BY 's3cret'", "GRANT SELECT ON holdfast.* TO reader@'%'",
		"CREATE TABLE orders (id BIGINT PRIMARY KEY, total INT)",
		"CREATE TABLE nokey (id BINARY(32) NOT NULL, revision BIGINT, seen BIGINT, expires BIGINT, sweep INT, data MEDIUMBLOB)",
		"CREATE TABLE pair (id BINARY(32) NOT NULL, revision BIGINT, seen BIGINT, expires BIGINT, sweep INT, data MEDIUMBLOB, PRIMARY KEY (id, revision))",
		"CREATE TABLE short (id BINARY(32) PRIMARY KEY, revision BIGINT, seen BIGINT, expires BIGINT, sweep INT)",
		"CREATE TABLE extra (id BINARY(32) PRIMARY KEY, revision BIGINT, seen BIGINT, expires BIGINT, sweep INT, data MEDIUMBLOB, tenant INT NOT NULL)",
		"CREATE TABLE narrow (id BINARY(32) PRIMARY KEY, revision INT, seen BIGINT, expires BIGINT, sweep INT, data MEDIUMBLOB)",
		"CREATE VIEW look AS SELECT 1 AS id",
	} {
		testsql.MustExec(t, admin, q)
	}
	mustOpen(t, address(srv)+"?table=newer")
	testsql.MustExec(t, admin, "UPDATE newer_meta SET value = 2 WHERE name = 'schema'")
	with := func(user, rest string) string { return "mysql://" + user + "@" + srv.Addr + rest }
	ca := "?ca_file=" + cert.CAFile
	for _, tt := range []struct {
		name, url   string
		want        string
		unavailable bool
	}{
		{"nobody listens", "mysql://u:s3cret@" + testserver.FreeAddr(t) + "/db", "connection refused; is mysqld or mariadbd running there?", true},
		{"no such host", "mysql://u:s3cret@no-such-host.invalid/db", `host "no-such-host.invalid" cannot be resolved`, true},
		{"wrong password", with("holdfast:wr0ng", "/holdfast"), "wrong user or password", false},
		{"wrong user", with("hunter:s3cret", "/holdfast"), "wrong user or password", false},
		{"no database", with("holdfast:s3cret", "/shop"), "no such database", false},
		{"no right to the database", with("nobody:s3cret", "/holdfast"), "may not use this database", false},
		{"no table and no right to make it", with("reader:s3cret", "/holdfast"), "run this as a user who may:\n  holdfast store migrate 'mysql://reader@", false},
		{"print", with("reader:s3cret", "/holdfast?table=x"), "store migrate --print 'mysql://reader@" + srv.Addr + "/holdfast?table=x'", false},
		{"reads only", with("reader:s3cret", "/holdfast?table=newer2"), "GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.newer2 TO reader", false},
		{"somebody else's table", with("holdfast:s3cret", "/holdfast?table=orders"), "table orders is not one of Holdfast's: column id is bigint(20), want binary(32)", false},
		{"no key", with("holdfast:s3cret", "/holdfast?table=nokey"), "primary key", false},
		{"another key", with("holdfast:s3cret", "/holdfast?table=pair"), "primary key", false},
		{"a column too few", with("holdfast:s3cret", "/holdfast?table=short"), "no column data", false},
		{"a column too many", with("holdfast:s3cret", "/holdfast?table=extra"), "column tenant is not known and must not be empty", false},
		{"another type", with("holdfast:s3cret", "/holdfast?table=narrow"), "column revision is int(11), want bigint", false},
		{"a view", with("holdfast:s3cret", "/holdfast?table=look"), "column id is", false},
		{"a newer schema", with("holdfast:s3cret", "/holdfast?table=newer"), "schema version 2, this release knows 1", false},
		{"plain to a server with TLS only", "mysql://holdfast:s3cret@" + secure.Addr + "/holdfast", "add tls=verify", false},
		{"TLS to a server without", with("holdfast:s3cret", "/holdfast?tls=verify"), "TLS", true},
		{"unknown CA", "mysql://holdfast:s3cret@" + secure.Addr + "/holdfast?tls=verify", "certificate", true},
		{"wrong name", "mysql://holdfast:s3cret@" + secure.Addr + "/holdfast" + ca + "&server_name=other", "certificate", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "reads only" {
				mustOpen(t, address(srv)+"?table=newer2")
			}
			_, err := mysql.Open(t.Context(), tt.url)
			testsql.WantOpenError(t, tt.url, err, tt.want, tt.unavailable)
		})
	}
	for _, options := range []string{ca, "?tls=insecure", ca + "&cert_file=" + cert.CertFile + "&key_file=" + cert.KeyFile, ca + "&server_name=localhost"} {
		s := mustOpen(t, "mysql://holdfast:s3cret@"+secure.Addr+"/holdfast"+options)
		testsql.MustSave(t, s, testsql.ID(len(options)), testsql.Record("ada"), 0)
	}
}

// TestRights grants what the documentation and the error say, and no more.
func TestRights(t *testing.T) {
	t.Parallel()
	srv := testserver.MariaDB(t)
	admin := mustAdmin(t, srv)
	password := "s3cret@/?#'\"\\ é"
	testsql.MustExec(t, admin, "CREATE USER app@'%' IDENTIFIED BY "+`'s3cret@/?#''"\\ é'`)
	url := (&url.URL{Scheme: "mysql", User: url.UserPassword("app", password), Host: srv.Addr, Path: "/holdfast"}).String()
	if err := mysql.Migrate(t.Context(), address(srv)); err != nil {
		t.Fatal(err)
	}
	testsql.MustExec(t, admin, "GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.holdfast_sessions TO app@'%'")
	_, err := mysql.Open(t.Context(), url)
	testsql.WantOpenError(t, "no right to the second table", err, "GRANT SELECT, UPDATE ON holdfast.holdfast_sessions_meta TO app", false)
	testsql.MustExec(t, admin, "GRANT SELECT, UPDATE ON holdfast.holdfast_sessions_meta TO app@'%'")
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
	printed, err := mysql.Schema("mysql://app@h/holdfast?table=printed")
	if err != nil {
		t.Fatal(err)
	}
	for statement := range strings.SplitSeq(printed, ";\n") {
		if statement = strings.TrimSpace(statement); statement != "" && !strings.HasPrefix(statement, "--") {
			testsql.MustExec(t, admin, statement)
		}
	}
	testsql.MustExec(t, admin, "GRANT ALL ON holdfast.* TO app@'%'")
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, "mariadb://app@"+srv.Addr+"/holdfast?table=printed&password_file="+file)
}

func TestPage(t *testing.T) {
	schema, err := mysql.Schema("mysql://app@h/shop")
	if err != nil {
		t.Fatal(err)
	}
	testsql.Page(t, "mysql.md", schema)
}
