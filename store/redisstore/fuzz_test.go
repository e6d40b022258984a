package redisstore_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

func FuzzURL(f *testing.F) {
	for _, url := range []string{
		"redis://ada:hunter2@h:1/2?prefix=a:", "rediss://[::1]?server_name=x", "redis-sentinel://:hunter2@a,b:1/3?master=m&wait=1&wait_timeout=1s",
		"redis-cluster://a,b,c?cache=1MB&cache_ttl=1s", "redis://ada:hunter2#@h", "redis:", "://",
	} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		if strings.Contains(url, "_file=") {
			t.Skip("names files")
		}
		err := redisstore.ParseURL(url)
		if err != nil && strings.Contains(err.Error(), "hunter2") && strings.Count(url, "hunter2") == 1 && strings.Contains(url, ":hunter2@") &&
			!strings.ContainsAny(url[strings.Index(url, "hunter2"):], "?/#") {
			t.Errorf("the error shows the password: %v", err)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add("%2\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*1\r\n%1\r\n+name\r\n+x\r\n")
	f.Add("-NOAUTH\r\n")
	f.Add("$-1\r\n")
	f.Add("*4096\r\n")
	f.Fuzz(func(_ *testing.T, reply string) { _, _ = redisstore.ReadReply(reply) })
}

// What is nested in the reply to HELLO is passed over, and a refusal has no role.
func TestReply(t *testing.T) {
	for reply, want := range map[string][]string{
		"%2\r\n$7\r\nmodules\r\n*1\r\n%1\r\n+role\r\n+x\r\n$4\r\nrole\r\n$7\r\nreplica\r\n": {"modules", "", "role", "replica"},
		"-NOAUTH role master\r\n": nil,
	} {
		got, err := redisstore.ReadReply(reply)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q is read as %q, %v, want %q", reply, got, err, want)
		}
	}
}
