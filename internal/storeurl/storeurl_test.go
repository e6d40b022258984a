package storeurl_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/internal/storeurl"
)

func TestParse(t *testing.T) {
	tests := []struct {
		raw  string
		want storeurl.URL
	}{
		{"mysql://db", storeurl.URL{Scheme: "mysql", Hosts: []string{"db"}, Query: url.Values{}}},
		{"MySQL://db1,db2:3307,[::1]:3308/shop?table=t", storeurl.URL{
			Scheme: "mysql", Hosts: []string{"db1", "db2:3307", "[::1]:3308"}, Path: "/shop", Query: url.Values{"table": {"t"}},
		}},
		{"redis://app:s%2Fe%40c@db:1,db:2?a=1&a=2&b=%26", storeurl.URL{
			Scheme: "redis", User: "app", Password: "s/e@c", HasPassword: true, Hosts: []string{"db:1", "db:2"},
			Query: url.Values{"a": {"1", "2"}, "b": {"&"}},
		}},
		{"redis://:secret@db", storeurl.URL{Scheme: "redis", Password: "secret", HasPassword: true, Hosts: []string{"db"}, Query: url.Values{}}},
		{"redis://app@db/", storeurl.URL{Scheme: "redis", User: "app", Hosts: []string{"db"}, Path: "/", Query: url.Values{}}},
		{"redis:///0", storeurl.URL{Scheme: "redis", Path: "/0", Query: url.Values{}}},
	}
	for _, test := range tests {
		got, err := storeurl.Parse(test.raw)
		if err != nil {
			t.Errorf("Parse(%q) = %v", test.raw, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("Parse(%q) (-want +got):\n%s", test.raw, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for raw, want := range map[string]string{
		"":                          "no ://",
		"s3cret":                    "no ://",
		"redis:s3cret@h":            "no ://",
		"redis://u:s3cret#x@h":      "%23",
		"redis://u:s3/cret@h":       "%2F",
		"redis://u:s3?cret@h":       "%3F",
		"redis://u:s3cret%@h":       "malformed",
		"redis://u:s3cret@h?a=%zz":  "malformed",
		"redis://h?a;b=s3cret":      "malformed",
		"re dis://u:s3cret@h":       "malformed",
		"redis://u:s3cret[@h/%zz":   "malformed",
		"redis://u:s3cret\x00@h/db": "malformed",
	} {
		_, err := storeurl.Parse(raw)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q) = %v, want %q", raw, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "s3") {
			t.Errorf("Parse(%q) shows the password: %v", raw, err)
		}
	}
}

func TestAddrs(t *testing.T) {
	u, err := storeurl.Parse("x://a,b:2,[::1],[::2]:3,10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := u.Addrs("1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a:1", "b:2", "[::1]:1", "[::2]:3", "10.0.0.1:1"}, got); diff != "" {
		t.Errorf("Addrs (-want +got):\n%s", diff)
	}
	for raw, want := range map[string]string{
		"x://":            "names no host",
		"x:///db":         "names no host",
		"x://a,,b":        "number 2 is empty",
		"x://:1":          "number 1 is empty",
		"x://a:0":         "port 0",
		"x://a:70000":     "port 70000",
		"x://a,b:port":    "host 2",
		"x://::1":         "host 1",
		"x://a:1:s3cret":  "host 1",
		"x://a:1,b,a:1":   "given twice",
		"x://a b":         "host 1",
		"x://]":           "host 1",
		"x://u:p@a,s3@b":  "host 1", // the user ends at the last @
		"x://a,b:1?x=1:2": "",
	} {
		u, err := storeurl.Parse(raw)
		if err == nil {
			_, err = u.Addrs("1")
		}
		if want == "" && err != nil || want != "" && raw != "x://u:p@a,s3@b" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("Addrs of %q = %v, want %q", raw, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "s3") {
			t.Errorf("Addrs of %q shows what may be a password: %v", raw, err)
		}
	}
}

func TestOptions(t *testing.T) {
	set := make(map[string]string)
	keep := func(name string) func(string) error {
		return func(v string) error { set[name] = v; return nil }
	}
	known := map[string]func(string) error{"prefix": keep("prefix"), "password_file": keep("password_file"), "table": keep("table")}
	u, err := storeurl.Parse("x://h?prefix=a&table=b")
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Options(known); err != nil || set["prefix"] != "a" || set["table"] != "b" {
		t.Errorf("Options = %v, set %v", err, set)
	}
	u.Query = url.Values{"prefx": {"a"}, "passwordfile": {"b"}, "table": {"a", "b"}}
	err = u.Options(known)
	for _, want := range []string{
		`option "prefx" unknown, did you mean "prefix"?`, `did you mean "password_file"?`, "option table is given 2 times",
		"(want password_file, prefix, table)",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Options = %v, want %q", err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("mysql://u:p@a,b:1/db?x=y")
	f.Add("redis://[::1]:6379/0")
	f.Add("x://%41:%40@h")
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := storeurl.Parse(raw)
		if err != nil {
			return
		}
		addrs, err := u.Addrs("1")
		if err == nil && len(addrs) != len(u.Hosts) {
			t.Errorf("%q: %d addresses of %d hosts", raw, len(addrs), len(u.Hosts))
		}
	})
}
