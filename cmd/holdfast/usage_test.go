package main

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// TestBadInput: what cannot be used is refused in one line that says what is wrong and how to fix it.
func TestBadInput(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writable := filepath.Join(dir, "writable")
	mustMkdir(t, writable, 0o777)
	locked := filepath.Join(dir, "locked")
	mustMkdir(t, locked, 0o500)
	if os.Geteuid() == 0 { // to whom every mode is writable
		if err := os.Chown(locked, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	nobody := testserver.FreeAddr(t)
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	up := []string{"gateway", "--listen", "127.0.0.1:0", "--upstream", "http://127.0.0.1:1"}
	key := func(path string) []string { return append(up, "--affinity", "cookie", "--key-file", path) }
	good := strings.Repeat("0123456789abcdef", 4)

	const secret = "hunter2"
	tests := []struct {
		name   string
		args   []string
		env    []string
		status int
		want   string // regular expression
	}{
		{"no command", nil, nil, 2, `expected one of.*demo.*--help`},
		{"unknown command", []string{"serve"}, nil, 2, `unexpected argument serve`},
		{"unknown flag", []string{"demo", "--aps", "2"}, nil, 2, `unknown flag --aps, did you mean "--apps"\?.*holdfast demo --help`},
		{"not a number", []string{"demo", "--apps", "two"}, nil, 2, `--apps.*"two"`},
		{"no apps", []string{"demo", "--apps", "0"}, nil, 2, `0 application servers: want 1 to 9`},
		{"many apps", []string{"demo"}, []string{"HOLDFAST_APPS=10"}, 2, `10 application servers: want 1 to 9`},
		{"unknown affinity", []string{"demo", "--affinity", "ip"}, nil, 2, `--affinity must be one of "none","cookie"`},
		{"address", []string{"demo", "--listen", "8080"}, nil, 2, `"8080": want host:port`},
		{"public address", []string{"demo", "--listen", "0.0.0.0:0"}, nil, 2, `can be reached from other machines.*--public`},
		{"every address", []string{"demo", "--listen", ":0"}, nil, 2, `can be reached from other machines`},
		{"demo: port in use", []string{"demo", "--listen", taken.Addr().String()}, nil, 1, `address .* is in use: choose another with --listen`},
		{"demo: unknown scheme", []string{"demo", "--store", "mongodb://ada:" + secret + "@db/1"}, nil, 2, `scheme "mongodb" unknown \(want memory:, file:`},
		{"demo: no scheme", []string{"demo", "--store", "/tmp/" + secret}, nil, 2, `no scheme \(want memory:, file:`},
		{"demo: argument", []string{"demo", "redis://ada:" + secret + "@db/1"}, nil, 2, `unexpected argument`},

		{"check: no URL", []string{"store", "check"}, nil, 2, `expected "<url>"`},
		{"check: unknown scheme", []string{"store", "check", "mongodb://ada:" + secret + "@db/1"}, nil, 2, `scheme "mongodb" unknown`},
		{"check: format", []string{"store", "check", "memory:", "-o", "xml"}, nil, 2, `--output must be one of "text","json"`},
		{"check: memory with a path", []string{"store", "check", "memory:x"}, nil, 2, `memory: takes nothing`},
		{"unreachable", []string{"store", "check", "redis://ada:" + secret + "@" + nobody}, nil, 1, `connection refused; is redis-server running`},
		{"demo: unreachable", []string{"demo", "--listen", "127.0.0.1:0", "--store", "redis://:" + secret + "@" + nobody}, nil, 1, `connection refused`},
		{"world-writable", []string{"store", "check", "file:" + writable}, nil, 1, `writable by other users.*chmod 0700`},
		{"demo: world-writable", []string{"demo", "--listen", "127.0.0.1:0", "--store", "file:" + writable}, nil, 1, `writable by other users.*chmod 0700`},
		{"unwritable", []string{"store", "check", "file:" + locked}, nil, 1, `not writable|belongs to user`},
		{"missing", []string{"store", "check", "file:" + filepath.Join(dir, "missing")}, nil, 1, `does not exist: make it`},
		{"missing parent", []string{"store", "check", "file:" + filepath.Join(dir, "missing", "too")}, nil, 1, `parent is missing`},
		{"unknown option", []string{"store", "check", "redis://127.0.0.1?prefx=a:"}, nil, 1, `option "prefx" unknown, did you mean "prefix"`},

		{"stat: unknown scheme", []string{"store", "stat", "mongodb://ada:" + secret + "@db/1"}, nil, 2, `scheme "mongodb" unknown`},
		{"stat: missing", []string{"store", "stat", "file:" + filepath.Join(dir, "missing")}, nil, 1, `does not exist: make it`},
		{"stat: no database", []string{"store", "stat", "sqlite:" + filepath.Join(dir, "missing.db")}, nil, 1, `missing.db does not exist: make it with holdfast store migrate`},
		{"gc: unreachable", []string{"store", "gc", "redis://ada:" + secret + "@" + nobody}, nil, 1, `connection refused`},
		{"migrate: unknown scheme", []string{"store", "migrate", "mongodb://ada:" + secret + "@db/1"}, nil, 2, `scheme "mongodb" unknown`},
		{"migrate: unreachable", []string{"store", "migrate", "mysql://ada:" + secret + "@" + nobody + "/shop"}, nil, 1, `connection refused`},
		{"copy: one URL", []string{"store", "copy", "redis://127.0.0.1"}, nil, 2, `expected "<to>"`},
		{"copy: from memory", []string{"store", "copy", "memory:", "redis://127.0.0.1"}, nil, 2, `memory: cannot be used: it is in one process's memory`},
		{"copy: to memory", []string{"store", "copy", "file:" + dir, "memory:"}, nil, 2, `memory: cannot be used`},
		{"copy: parallel", []string{"store", "copy", "file:" + dir, "redis://127.0.0.1", "--parallel", "0"}, nil, 2, `--parallel 1 to 256`},
		{"copy: from nowhere", []string{"store", "copy", "file:" + filepath.Join(dir, "missing"), "redis://127.0.0.1"}, nil, 1, `does not exist: make it`},

		{"no upstream", []string{"gateway"}, nil, 2, `no upstream: give the URL`},
		{"upstream", []string{"gateway", "--upstream", "10.0.0.1"}, nil, 2, `want http://host:port`},
		{"upstream with a password", []string{"gateway", "--upstream", "http://ada:" + secret + "@10.0.0.1"}, nil, 2, `remove it`},
		{"two of one name", []string{"gateway", "--upstream", "a=http://h:1,a=http://h:2"}, nil, 2, `same ID "a"`},
		{"timeout", append(up, "--dial-timeout", "2"), nil, 2, `--dial-timeout: want a time such as 30s`},
		{"gateway: port in use", []string{"gateway", "--listen", taken.Addr().String(), "--upstream", "http://127.0.0.1:1"}, nil, 1, `is in use`},
		{"gateway: address", []string{"gateway", "--listen", "nowhere", "--upstream", "http://127.0.0.1:1"}, nil, 2, `want host:port`},
		{"half of TLS", append(up, "--tls-cert", "x.pem"), nil, 2, `give both or neither`},
		{"no certificate", append(up, "--tls-cert", "x.pem", "--tls-key", "x.pem"), nil, 1, `--tls-cert: .*x.pem: no such file`},
		{"no key file", key(filepath.Join(dir, "none")), nil, 1, `no such file.*openssl rand`},
		{"readable key", key(file("readable", good, 0o644)), nil, 1, `other users can use it \(mode 0644\)`},
		{"group's key", key(file("group", good, 0o640)), nil, 1, `other users can use it \(mode 0640\)`},
		{"short key", key(file("short", good[:32], 0o600)), nil, 1, `holds 24 bytes: want 32`},
		{"long key", key(file("long", strings.Repeat("\x01\xff", 17), 0o600)), nil, 1, `holds 34 bytes: want 32`},
		{"empty key", key(file("empty", "", 0o600)), nil, 1, `holds 0 bytes: want 32`},
		{"password as key", key(file("password", secret+"-correct-horse-battery-staple", 0o600)), nil, 1, `not a key: want 32 random bytes`},
		{"default key", key(file("zero", strings.Repeat("0", 64), 0o600)), nil, 1, `one byte repeated`},
		{"directory as key", key(dir), nil, 1, `not a file`},
		{"key in the environment", append(up, "--affinity", "cookie"), []string{"HOLDFAST_KEY=" + secret}, 1, `HOLDFAST_KEY: it is not a key`},
		{"two keys", key(file("good", good, 0o600)), []string{"HOLDFAST_KEY=" + good}, 2, `give one of them`},

		{"key: no command", []string{"key"}, nil, 2, `expected one of.*new.*ls`},
		{"key new: no file", []string{"key", "new"}, nil, 2, `expected "<file>"`},
		{"key new: over a file", []string{"key", "new", file("taken", good, 0o600)}, nil, 1, `taken: file already exists: its keys are needed`},
		{"key new: no directory", []string{"key", "new", filepath.Join(dir, "missing", "keys")}, nil, 1, `no such file`},
		{"key ls: none", []string{"key", "ls", filepath.Join(dir, "missing")}, nil, 1, `no such file: make one with holdfast key new`},
		{"key ls: scheme", []string{"key", "ls", "ftp://ada:" + secret + "@h/keys"}, nil, 2, `scheme "ftp" unknown: want file:/path`},
		{"key ls: plain HTTP", []string{"key", "ls", "http://ada:" + secret + "@keys.example/ring"}, nil, 2, `would show the keys to the network`},
		{"key ls: readable", []string{"key", "ls", file("world", "{}", 0o644)}, nil, 1, `other users can use it \(mode 0644\): chmod 600 it`},
		{"key ls: not a ring", []string{"key", "ls", file("hex", good, 0o600)}, nil, 1, `not a key ring.*make a key with holdfast key new`},
		{"key ls: password", []string{"key", "ls", "env:KEYS"}, []string{"KEYS=" + secret}, 1, `env:KEYS: it is not a key ring`},
		{"key ls: not set", []string{"key", "ls", "env:NO_SUCH_KEYS"}, nil, 1, `it is not set`},
		{"key rotate: none", []string{"key", "rotate", filepath.Join(dir, "missing")}, nil, 1, `no such file: make one`},
		{"key rotate: not a ring", []string{"key", "rotate", file("text", secret, 0o600)}, nil, 1, `not a key ring`},
		{"key rotate: wait", []string{"key", "rotate", "--wait=-1h", "x"}, nil, 2, `--wait -1h0m0s: want a time such as 1h`},
		{"key retire: no ID", []string{"key", "retire", "--now", "x"}, nil, 2, `--now ends sessions: say which keys`},
		{"key retire: ID", []string{"key", "retire", "x", "1"}, nil, 2, `"1" is no key's ID: want 8 hexadecimal`},
		{"key retire: time", []string{"key", "retire", "--older-than=-1s", "x"}, nil, 2, `--older-than -1s`},

		{"a child's command", []string{"demo-app"}, nil, 1, `for holdfast demo to run`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			wantRefusal(t, test.args, test.env, test.status, test.want, secret)
		})
	}
}

func TestWrongPassword(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	redis := testserver.Redis(t, testserver.RedisOptions{Password: "right-password", Users: []string{"reader on >" + secret + " ~holdfast:* +get"}})
	for _, test := range []struct{ name, url, want string }{
		{"wrong", "redis://:" + secret + "@" + redis.Addr, `wrong password`},
		{"none", "redis://" + redis.Addr, `asks for a password`},
		{"no such user", "redis://ada:" + secret + "@" + redis.Addr, `wrong password for user "ada", or no such user`},
		{"few rights", "redis://reader:" + secret + "@" + redis.Addr, `grant it with ACL SETUSER`},
		{"TLS to a plain port", "rediss://:" + secret + "@" + redis.Addr, `TLS.*write redis:// instead`},
	} {
		t.Run(test.name, func(t *testing.T) {
			wantRefusal(t, []string{"store", "check", test.url}, nil, 1, test.want, secret)
		})
	}
	wantRefusal(t, []string{"demo", "--listen", "127.0.0.1:0", "--store", "redis://:" + secret + "@" + redis.Addr}, nil, 1, `wrong password`, secret)
}

// wantRefusal runs the program and wants one line on standard error, and the exit status.
func wantRefusal(t *testing.T, args, env []string, status int, want, secret string) {
	t.Helper()
	got, stdout, stderr := holdfast(t, env, args...)
	if got != status {
		t.Errorf("holdfast %s: exit status %d, want %d", strings.Join(args, " "), got, status)
	}
	if stdout != "" {
		t.Errorf("holdfast %s printed data:\n%s", strings.Join(args, " "), stdout)
	}
	line, more, _ := strings.Cut(stderr, "\n")
	if more != "" || !strings.HasPrefix(line, "holdfast: ") || !regexp.MustCompile(want).MatchString(line) {
		t.Errorf("holdfast %s said\n%swant one line that matches %s", strings.Join(args, " "), stderr, want)
	}
	if strings.Contains(stderr, secret) {
		t.Errorf("holdfast %s printed a password:\n%s", strings.Join(args, " "), stderr)
	}
}

func TestHelp(t *testing.T) {
	for _, command := range []string{"", "demo", "gateway", "store check", "store stat", "store gc", "store migrate", "store copy", "key new", "key ls", "key rotate", "key retire", "version"} {
		status, out, errs := holdfast(t, nil, append(strings.Fields(command), "--help")...)
		if status != 0 || errs != "" || !strings.HasPrefix(out, "Usage: holdfast "+command) {
			t.Errorf("holdfast %s --help: %d\n%s%s", command, status, out, errs)
		}
		if strings.Contains(out, "demo-app") {
			t.Errorf("holdfast %s --help shows a child's command", command)
		}
		if strings.Contains(out, "\x1b") {
			t.Errorf("holdfast %s --help is coloured, and this is no terminal", command)
		}
	}
}

func TestVersion(t *testing.T) {
	if status, out, errs := holdfast(t, nil, "version"); status != 0 || !strings.HasPrefix(out, "holdfast ") || errs != "" {
		t.Errorf("holdfast version: %d %q %q", status, out, errs)
	}
	status, out, _ := holdfast(t, []string{"HOLDFAST_OUTPUT=json"}, "version")
	var v struct{ Version, Go string }
	if mustUnmarshal(t, out, &v); status != 0 || v.Version == "" || !strings.HasPrefix(v.Go, "go") {
		t.Errorf("HOLDFAST_OUTPUT=json holdfast version: %d %q", status, out)
	}
}

func mustMkdir(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // other than Mkdir it does not mind the umask
		t.Fatal(err)
	}
}
