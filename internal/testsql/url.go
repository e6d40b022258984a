package testsql

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// BadURL is a URL that a store refuses without connecting, and what the error says.
type BadURL struct{ URL, Want string }

// BadURLs proves that the URLs that no kind of server takes are refused, by Schema too, and those of this kind.
func (k Kind) BadURLs(t *testing.T, schema func(url string) (string, error), own ...BadURL) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cert := testserver.NewCertificates(t)
	all := append([]BadURL{
		{"", "want " + k.Scheme + "://"},
		{"localhost", "want " + k.Scheme + "://"},
		{"http://u@h/db", "want " + k.Scheme + "://"},
		{k.Scheme + ":u@h/db", "want " + k.Scheme + "://"},
	}, own...)
	for _, tt := range []BadURL{
		{"u@/db", "no host"},
		{"u@h", "names no database"},
		{"u@h/a/b", "names no database"},
		{"h/db", "names no user"},
		{"u@h:0/db", "port 0"},
		{"u@h,,h2/db", "number 2 is empty"},
		{"u@h/db?tabel=x", `option "tabel" unknown, did you mean "table"?`},
		{"u@h/db?sslmode=require", "unknown, did you mean"},
		{"u@h/db?table=a&table=b", "given 2 times"},
		{"u@h/db?table=a.b", "small letters"},
		{"u@h/db?table=Sessions", "small letters"},
		{"u@h/db?table=a%60b", "small letters"},
		{"u@h/db?table=" + strings.Repeat("a", 49), "small letters"},
		{"u@h/db?sweep=0s", "want a duration between 1s and 24h"},
		{"u@h/db?sweep=off", "want a duration"},
		{"u@h/db?max_conns=0", "between 1 and 1000"},
		{"u@h/db?connect_timeout=1h", "want a duration"},
		{"u@h/db?prepare=no", "want true or false"},
		{"u@h/db?tls=require", "want off, verify, or insecure"},
		{"u@h/db?tls=off&ca_file=" + cert.CAFile, "want tls=verify"},
		{"u@h/db?ca_file=/nonexistent", "no such file"},
		{"u@h/db?ca_file=" + empty, "no certificate"},
		{"u@h/db?server_name=", "it is empty"},
		{"u@h/db?cert_file=" + cert.CertFile, "want both or neither"},
		{"u@h/db?cert_file=" + cert.KeyFile + "&key_file=" + cert.CertFile, "cert_file and key_file"},
		{"u@h/db?password_file=/nonexistent", "no such file"},
		{"u@h/db?password_file=" + empty, "is empty"},
		{"u:s3cret@h/db?password_file=" + cert.CAFile, "want one of them"},
		{"u@h/db?password=s3cret", "password_file="},
		{"u:s3cret#hunter2@h/db", "%23"},
		{"u:s3cret/hunter2@h/db", "%40"},
		{"u:s3cret?hunter2@h/db", "%40"},
		{"u:s3cret%@h/db", "malformed"},
	} {
		all = append(all, BadURL{k.Scheme + "://" + tt.URL, tt.Want})
	}
	for _, tt := range all {
		_, err := k.Open(t.Context(), tt.URL)
		WantOpenError(t, tt.URL, err, tt.Want, false)
		if _, err := schema(tt.URL); err == nil {
			t.Errorf("Schema(%s) succeeds", tt.URL)
		}
	}
}

var tableName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,47}$`)

// FuzzURL proves that whatever a URL says, it is refused or names hosts that can be dialled and a table whose name can be
// written into a statement.
func (k Kind) FuzzURL(f *testing.F, parse func(url string) (addrs []string, table string, err error)) {
	for _, rest := range []string{
		"//u:p@h/db", "//u:p@h1,h2:1,[::1]:2/db?table=t&sweep=never&max_conns=3&prepare=false", "//u@h/db?tls=verify&server_name=x",
		"//u:%zz@h/db", "//u@h:99999/db", "//u@h/db?table=a'b", "", "//u@h/db?connect_timeout=1s&connect_timeout=2s",
	} {
		f.Add(k.Scheme + ":" + rest)
	}
	f.Add("")
	f.Fuzz(func(t *testing.T, url string) {
		addrs, table, err := parse(url)
		if err != nil {
			return
		}
		if len(addrs) == 0 || !tableName.MatchString(table) {
			t.Errorf("%q: hosts %q, table %q", url, addrs, table)
		}
		for _, addr := range addrs {
			if _, _, err := net.SplitHostPort(addr); err != nil {
				t.Errorf("%q: host %q: %v", url, addr, err)
			}
		}
	})
}
