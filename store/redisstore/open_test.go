package redisstore_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

// user is the ACL of docs/stores/redis.md.
const user = "app on >s3cret resetkeys ~holdfast:* resetchannels -@all" + needed + optional

const (
	needed   = " +evalsha +eval +get +set +del +getrange +setrange +pexpire"
	optional = " +scan +mget +info +config|get +ping"
)

// secrets are parts of passwords in the tests; none may show in an error.
var secrets = []string{"s3cret", "hunter2", "wr0ng"}

func TestURL(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	mustWriteFile(t, empty, "\n")
	cert := testserver.NewCertificates(t)
	tests := []struct{ url, want string }{
		{"", "want redis://"},
		{"localhost:6379", "want redis://"},
		{"localhost", "want redis://"},
		{"http://localhost", "want redis://"},
		{"redis:localhost", "want redis://"},
		{"redis://", "no host"},
		{"redis://:6379", "no host"},
		{"redis://h:0", "port 0"},
		{"redis://h:99999", "port 99999"},
		{"redis://h:port", "malformed"},
		{"redis://h/x", "number of a database"},
		{"redis://h/-1", "number of a database"},
		{"redis://h/0/1", "number of a database"},
		{"redis://h?prefx=a", `option "prefx" unknown, did you mean "prefix"?`},
		{"redis://h?passwordfile=a", `did you mean "password_file"?`},
		{"redis://h?cafile=a", `did you mean "ca_file"?`},
		{"redis://h1,h2", "redis-sentinel:// with the Sentinels"},
		{"redis://h?prefx=a&wait=0", `did you mean "prefix"`},
		{"redis://h?wait=0", "option wait: want how many replicas"},
		{"redis://h?wait=-1", "want how many replicas"},
		{"redis://h?wait=101", "1 to 100"},
		{"redis://h?wait=one", "1 to 100"},
		{"redis://h?wait_timeout=1s", "add wait="},
		{"redis://h?wait=1&wait_timeout=1", "such as 500ms"},
		{"redis://h?wait=1&wait_timeout=0s", "from 1ms to 1m0s"},
		{"redis://h?wait=1&wait_timeout=2m", "from 1ms to 1m0s"},
		{"redis://h?cache=1", "1MB to 64GB"},
		{"redis://h?cache=on", "1MB to 64GB"},
		{"redis://h?cache=1000KB", "1MB to 64GB"},
		{"redis://h?cache=65GB", "1MB to 64GB"},
		{"redis://h?cache=-5MB", "1MB to 64GB"},
		{"redis://h?cache=5000000000GB", "1MB to 64GB"},
		{"redis://h?cache_ttl=1s", "add cache="},
		{"redis://h?cache=1MB&cache_ttl=1h", "from 10ms to 1m0s"},
		{"redis://h?master=a", "is for redis-sentinel://"},
		{"redis-cluster://h?sentinel_user=a", "is for redis-sentinel://"},
		{"redis-sentinel://h", "option master is missing"},
		{"redis-sentinel://h?master=", "want the name that the Sentinels have"},
		{"redis-sentinel://h?master=a%20b", "want the name that the Sentinels have"},
		{"redis-sentinel://h?mastr=a", `did you mean "master"?`},
		{"redis-sentinel://?master=a", "no host; want redis-sentinel://"},
		{"redis-sentinel://h,,g?master=a", "number 2 is empty"},
		{"redis-sentinel://h,h:26379?master=a", "h:26379 is given twice"},
		{"redis-sentinel://h?master=a&sentinel_user=u", "add sentinel_password_file="},
		{"redis-sentinel://h?master=a&sentinel_password=s3cret", "sentinel_password_file="},
		{"redis-sentinel://h?master=a&sentinel_password_file=" + empty, "is empty"},
		{"redis-sentinel://h?master=a&ca_file=x", "write rediss://"},
		{"redis-sentinel:h?master=a", "want redis-sentinel://"},
		{"redis-cluster://", "no host; want redis-cluster://"},
		{"redis-cluster://h/1", "a Redis Cluster has database 0 only, not 1"},
		{"redis-cluster://h?prefix={a}", "want 1 to 64 letters"},
		{"redis-clustr://h", "want redis://"},
		{"redis://h?prefix=a&prefix=b", "prefix is given 2 times"},
		{"redis://h?prefix=", "want 1 to 64 letters"},
		{"redis://h?prefix=a*", "want 1 to 64 letters"},
		{"redis://h?prefix={a}", "want 1 to 64 letters"},
		{"redis://h?prefix=" + strings.Repeat("a", 65), "want 1 to 64 letters"},
		{"redis://h?ca_file=x", "write rediss://"},
		{"redis://h?prefix=%zz", "malformed"},
		{"rediss://h?ca_file=/nonexistent", "no such file"},
		{"rediss://h?ca_file=" + empty, "no certificate"},
		{"rediss://h?server_name=", "want the name"},
		{"rediss://h?cert_file=" + cert.CertFile, "want both or neither"},
		{"rediss://h?cert_file=" + cert.CertFile + "&key_file=/nonexistent", "no such file"},
		{"rediss://h?cert_file=" + cert.KeyFile + "&key_file=" + cert.CertFile, "cert_file and key_file"},
		{"redis://h?password_file=/nonexistent", "no such file"},
		{"redis://h?password_file=" + empty, "is empty"},
		{"redis://u:s3cret@h?password_file=" + cert.CAFile, "want one of them"},
		{"redis://s3cret@h", "the user has no password"},
		{"redis://h?password=s3cret", "password_file="},
		// Characters that end the part of the URL that a password is in.
		{"redis://u:s3cret#hunter2@h", "%23"},
		{"redis://u:s3cret/hunter2@h", "%40"},
		{"redis://u:s3cret?hunter2@h", "%40"},
		{"redis://u:6379/s3cret@h", "%40"},
		{"redis://u:6379?s3cret@h", "%40"},
		{"redis://u:6379?x=s3cret@h", "%40"},
		{"redis://u:6379#s3cret@h", "%23"},
		{"redis://:s3cret%@h", "malformed"},
		{"redis://u:s3cret[@h", "malformed"},
		{"redis://u:s3cret@h:hunter2", "malformed"},
	}
	for _, tt := range tests {
		_, err := redisstore.Open(t.Context(), tt.url)
		wantOpenError(t, tt.url, err, tt.want)
		if errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("Open(%s) = %v, want it found wrong without asking a server", tt.url, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	plain := testserver.Redis(t)
	locked := testserver.Redis(t, testserver.RedisOptions{Password: "s3cret", Users: []string{user, "off off >s3cret +@all"}})
	secure := testserver.Redis(t, testserver.RedisOptions{TLS: true})
	cluster := testserver.Redis(t, testserver.RedisOptions{Config: []string{"cluster-enabled yes"}})
	full := testserver.Redis(t, testserver.RedisOptions{Config: []string{"maxclients 1"}})
	busy := mustAdmin(t, full)
	mustDo(t, busy, "PING")
	ca := "?ca_file=" + secure.TLS.CAFile
	certificate := "&cert_file=" + secure.TLS.CertFile + "&key_file=" + secure.TLS.KeyFile
	foreign := "?ca_file=" + testserver.NewCertificates(t).CAFile
	tests := []struct {
		name, url   string
		want        string
		unavailable bool
	}{
		{"nobody listens", "redis://" + testserver.FreeAddr(t), "connection refused; is redis-server running there?", true},
		{"no such host", "redis://no-such-host.invalid", `host "no-such-host.invalid" cannot be resolved`, true},
		{"not Redis", "redis://" + testserver.Answer(t, "HTTP/1.1 400 Bad Request\r\n\r\n"), "does not speak Redis' protocol", true},
		{"closes at once", "redis://" + testserver.Answer(t, ""), "does not speak Redis' protocol", true},
		{"quotes the password", "redis://:s3cret@" + testserver.Answer(t, "-ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' 's3cret'\r\n"+
			strings.Repeat("-ERR unknown command 'AUTH', with args beginning with: 's3cret'\r\n", 3)), "unknown command 'AUTH'", true},
		{"quotes the password otherwise", "redis://:s3cret@" + testserver.Answer(t, "-ERR bad: HELLO 3 AUTH default s3cret\r\n"), "bad: HELLO 3 AUTH [secret]", true},
		{"no password", "redis://" + locked.Addr, "asks for a password", false},
		{"wrong password", "redis://:wr0ng@" + locked.Addr, "wrong password", false},
		{"wrong password of a user", "redis://app:wr0ng@" + locked.Addr, `wrong password for user "app"`, false},
		{"wrong user", "redis://nobody:s3cret@" + locked.Addr, `wrong password for user "nobody", or no such user`, false},
		{"user is off", "redis://off:s3cret@" + locked.Addr, "or the user is off", false},
		{"wrong prefix", "redis://app:s3cret@" + locked.Addr + "?prefix=other:", `user "app" may not use keys other:*; grant it with ACL SETUSER app ~other:* +`, false},
		{"may not select", "redis://app:s3cret@" + locked.Addr + "/3", "may not run SELECT", false},
		{"no such database", "redis://" + plain.Addr + "/99", "no database 99", false},
		{"TLS to plain", "rediss://" + plain.Addr, "if not, write redis://", true},
		{"TLS to something else", "rediss://" + testserver.Answer(t, "HTTP/1.1 400 Bad Request\r\n\r\n"), "does not speak TLS on this port", false},
		{"plain to TLS", "redis://" + secure.Addr, "write rediss://", true},
		{"unknown CA", "rediss://" + secure.Addr, "name its CA with ca_file=", false},
		{"another CA", "rediss://" + secure.Addr + foreign + certificate, "name its CA with ca_file=", false},
		{"another name", "rediss://" + secure.Addr + ca + "&server_name=redis.example", "server_name=", false},
		{"no client certificate", "rediss://" + secure.Addr + ca, "add cert_file= and key_file=", false},
		{"cluster", "redis://" + cluster.Addr, "part of a Redis Cluster", false},
		{"too many clients", "redis://" + full.Addr, "max number of clients", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			_, err := redisstore.Open(ctx, tt.url)
			wantOpenError(t, tt.url, err, tt.want)
			// Whether a client without a certificate reads the refusal or only sees the connection end is a race.
			if errors.Is(err, driver.ErrUnavailable) != tt.unavailable && tt.name != "no client certificate" {
				t.Errorf("Open(%s) = %v, matches ErrUnavailable: %v, want %v", tt.url, err, !tt.unavailable, tt.unavailable)
			}
		})
	}
}

func TestOpenHeedsItsContext(t *testing.T) {
	srv := testserver.Redis(t)
	srv.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := redisstore.Open(ctx, "redis://"+srv.Addr)
	if d := time.Since(start); d > 200*time.Millisecond+late {
		t.Errorf("Open took %v, its deadline was 200ms", d)
	}
	wantOpenError(t, srv.Addr, err, "no answer in time")
	if !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("Open = %v, want ErrUnavailable", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := redisstore.Open(cancelled, "redis://"+srv.Addr); !errors.Is(err, context.Canceled) {
		t.Errorf("Open under a cancelled context = %v", err)
	}
}

// The documented ACL is enough for everything, what is documented as optional is, and every other right is named when
// it is missing.
func TestACL(t *testing.T) {
	srv := testserver.Redis(t, testserver.RedisOptions{Users: []string{
		user,
		"least on >s3cret ~holdfast:* -@all" + needed,
	}})
	admin := mustAdmin(t, srv)
	for _, name := range []string{"app", "least"} {
		s := mustOpen(t, "redis://"+name+":s3cret@"+srv.Addr)
		rec := record("ada", "a", "1")
		changes := []driver.Change{set("b", "2")}
		next := after(rec, changes...)
		mustDo(t, admin, "FLUSHALL")
		mustDo(t, admin, "SCRIPT", "FLUSH")
		mustSave(t, s, idOf(1), rec, 0)
		mustSave(t, s, idOf(1), next, rec.Revision)
		raced := after(rec, changes...)
		merged, err := s.Merge(t.Context(), idOf(1), rec, raced, changes)
		if err != nil {
			t.Errorf("%s: Merge = %v", name, err)
		}
		if err := s.Touch(t.Context(), idOf(1), after(merged), merged.Revision); err != nil {
			t.Errorf("%s: Touch = %v", name, err)
		}
		var listErr error
		for _, listErr = range s.List(t.Context()) {
		}
		if name == "app" && listErr != nil || name == "least" && !errors.Is(listErr, driver.ErrUnavailable) {
			t.Errorf("%s: List = %v", name, listErr)
		}
		if err := s.Delete(t.Context(), idOf(1)); err != nil {
			t.Errorf("%s: Delete = %v", name, err)
		}
		if evicts := s.Describe().Evicts; evicts != (name == "least") {
			t.Errorf("%s: Describe says Evicts %v; without a right to INFO it has to be assumed", name, evicts)
		}
	}

	for _, right := range strings.Fields(needed) {
		mustDo(t, admin, "SCRIPT", "FLUSH")
		mustDo(t, admin, "ACL", "SETUSER", "app", "-"+right[1:])
		_, err := redisstore.Open(t.Context(), "redis://app:s3cret@"+srv.Addr)
		wantOpenError(t, "without "+right, err, "may not run ")
		if err != nil && !strings.Contains(err.Error(), strings.ToUpper(right[1:])+";") {
			t.Errorf("without %s: Open = %v, want it to name the command", right, err)
		}
		mustDo(t, admin, "ACL", "SETUSER", "app", right)
	}
}

func TestTLSAndPasswordFile(t *testing.T) {
	srv := testserver.Redis(t, testserver.RedisOptions{TLS: true, Password: "s3cret/?#@"})
	password := filepath.Join(t.TempDir(), "password")
	mustWriteFile(t, password, "s3cret/?#@\n")
	files := "ca_file=" + srv.TLS.CAFile + "&cert_file=" + srv.TLS.CertFile + "&key_file=" + srv.TLS.KeyFile
	for _, url := range []string{
		"rediss://" + srv.Addr + "?" + files + "&password_file=" + password,
		"rediss://:s3cret%2F%3F%23%40@" + srv.Addr + "/5?" + files + "&server_name=localhost&prefix=b:",
		"rediss://default:s3cret%2F%3F%23%40@localhost:" + srv.Port() + "/?" + files,
	} {
		s := mustOpen(t, url)
		rec := record("ada", "a", "1")
		mustSave(t, s, idOf(1), rec, 0)
		wantStored(t, s, idOf(1), rec)
		if err := s.Delete(t.Context(), idOf(1)); err != nil {
			t.Error(err)
		}
	}
}

// A password that is changed in its file is used for the next connection.
func TestPasswordRotates(t *testing.T) {
	srv := testserver.Redis(t, testserver.RedisOptions{Password: "s3cret"})
	file := filepath.Join(t.TempDir(), "password")
	mustWriteFile(t, file, "s3cret")
	s := mustOpen(t, "redis://"+srv.Addr+"?password_file="+file)
	mustWriteFile(t, file, "hunter2")
	conn, err := net.Dial("tcp", srv.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("AUTH s3cret\r\nCONFIG SET requirepass hunter2\r\nCLIENT KILL TYPE normal SKIPME yes\r\n")); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(conn)
	for range 3 { // before they are here, a save may be carried out and its answer lost with its connection
		if _, err := answers.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "with the new password", func() error { return s.Save(t.Context(), idOf(1), record("ada"), 0) })
}

func wantOpenError(t *testing.T, url string, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Open(%s) = %v, want an error that says %q", url, err, want)
		return
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		for _, secret := range secrets {
			if strings.Contains(e.Error(), secret) {
				t.Errorf("Open(%s) = %v, which shows the password", url, e)
			}
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("Open(%s) = %q, want one line", url, err)
	}
}

func mustWriteFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
