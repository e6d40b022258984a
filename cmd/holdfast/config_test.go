package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/internal/configfile"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// TestSettingsComplete: what the library can be told, the file can say. The exceptions are made from other settings, or are for Go
// programs only.
func TestSettingsComplete(t *testing.T) {
	exceptions := map[string]string{
		"Key":          "gateway.affinity.key_file, HOLDFAST_KEY",
		"SignatureKey": "gateway.session.signature_key_file",
		"TLS":          "a Go value; gateway.certificates is for files",
		"UpstreamTLS":  "gateway.upstream_tls",
		"AccessLog":    "gateway.access_log.path",
		"OnRequest":    "the metrics",
		"Logger":       "log.format",
		"Dial":         "a Go function",
		"Resolver":     "a Go value",
	}
	set := make(map[string]bool)
	var collect func(prefix string, v reflect.Value)
	collect = func(prefix string, v reflect.Value) {
		each(v, "", func(_, to string, field reflect.Value) {
			set[prefix+to] = true
			if field.Kind() == reflect.Slice && field.Type().Elem().Kind() == reflect.Struct {
				collect(prefix+to+"[].", reflect.New(field.Type().Elem()).Elem())
			}
		})
	}
	s := defaults()
	collect("", reflect.ValueOf(&s).Elem())
	var fields func(prefix string, typ reflect.Type) []string
	fields = func(prefix string, typ reflect.Type) (all []string) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			all = append(all, prefix+f.Name)
			if f.Type.PkgPath() != reflect.TypeFor[gateway.Config]().PkgPath() && f.Type.Kind() != reflect.Slice {
				continue
			}
			switch f.Type.Kind() {
			case reflect.Struct:
				all = append(all[:len(all)-1], fields(prefix+f.Name+".", f.Type)...)
			case reflect.Slice:
				if e := f.Type.Elem(); e.Kind() == reflect.Struct && e.PkgPath() == reflect.TypeFor[gateway.Config]().PkgPath() {
					all = append(all, fields(prefix+f.Name+"[].", e)...)
				}
			}
		}
		return all
	}
	all := fields("", reflect.TypeFor[gateway.Config]())
	for _, name := range all {
		if _, exempt := exceptions[name]; exempt == set[name] {
			t.Errorf("gateway.Config.%s: set by a setting: %v, an exception: %v", name, set[name], exempt)
		}
	}
	if !slices.Contains(all, "Upstreams[].HTTP2") || !slices.Contains(all, "HealthCheck.TCP") || len(all) < 70 {
		t.Errorf("the fields found are %q", all)
	}
	for name := range exceptions {
		if !slices.Contains(all, name) {
			t.Errorf("exception %s is no field", name)
		}
	}
}

// paths returns the paths of the settings of a group, with those of lists as list[].name, and what their help is.
func paths(typ reflect.Type, path string) map[string]string {
	all := make(map[string]string)
	for i := range typ.NumField() {
		f := typ.Field(i)
		at := strings.TrimPrefix(path+"."+f.Tag.Get("yaml"), ".")
		inner := f.Type
		if inner.Kind() == reflect.Slice && inner.Elem().Kind() == reflect.Struct {
			all[at] = f.Tag.Get("help")
			inner, at = inner.Elem(), at+"[]"
		}
		if inner.Kind() == reflect.Struct {
			for p, help := range paths(inner, at) {
				all[p] = help
			}
			continue
		}
		all[at] = f.Tag.Get("help")
	}
	return all
}

// TestConfigInit: the file to begin with has every setting, says what it is for, and can be used; so can an empty one be shown.
func TestConfigInit(t *testing.T) {
	t.Parallel()
	status, out, errs := holdfast(t, nil, "config", "init")
	if status != 0 || errs != "" {
		t.Fatalf("config init: %d %s", status, errs)
	}
	for path, help := range paths(reflect.TypeFor[settings](), "") {
		name := path[strings.LastIndexAny(path, ".")+1:]
		line := regexp.MustCompile(`(?m)^[ -]*` + regexp.QuoteMeta(name) + `:.* # ` + regexp.QuoteMeta(help) + `$`)
		if help == "" || !line.MatchString(out) && !strings.HasPrefix(path, "gateway.certificates[]") {
			t.Errorf("%s is not explained by %q", path, help)
		}
	}
	file := mustConfig(t, out)
	if status, out, errs := holdfast(t, nil, "config", "check", file); status != 0 || out != file+": ok\n" || errs != "" {
		t.Errorf("config check of what config init printed: %d %s%s", status, out, errs)
	}
	_, shown, _ := holdfast(t, nil, "config", "show")
	for line := range strings.Lines(shown) {
		if before, source, ok := strings.Cut(line, " # "); ok && source != "default\n" {
			t.Errorf("config show without anything: %s is from %s", before, source)
		}
	}
}

func mustConfig(t testing.TB, content string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "holdfast.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConfigShow: a flag goes before the environment, that before the file, and that before the default; and what is shown is a
// configuration file that means the same.
func TestConfigShow(t *testing.T) {
	t.Parallel()
	file := mustConfig(t, `gateway:
  listen: [127.0.0.1:1111]
  upstreams:
    - url: http://127.0.0.1:3001
      weight: 3
  affinity:
    kind: ip
  timeouts:
    dial: 3s
    drain: 3s
admin:
  listen: 127.0.0.1:1112
`)
	env := []string{"HOLDFAST_DIAL_TIMEOUT=4s", "HOLDFAST_DRAIN_TIMEOUT=4s", "HOLDFAST_LOG_FORMAT=json", "HOLDFAST_TLS_CERT=/c1,/c2", "HOLDFAST_TLS_KEY=/k1,/k2"}
	args := []string{"config", "show", file, "--drain-timeout", "5s", "--listen", ":1", "--listen", ":2"}
	status, out, errs := holdfast(t, env, args...)
	if status != 0 || errs != "" {
		t.Fatalf("config show: %d %s", status, errs)
	}
	lines := strings.Split(out, "\n")
	for _, want := range []string{
		`  listen: [":1", ":2"] # --listen`,
		`  upstreams: # ` + file + `:3`,
		`    - id: "" # default`,
		`      url: http://127.0.0.1:3001 # ` + file + `:4`,
		`      weight: 3 # ` + file + `:5`,
		`    kind: ip # ` + file + `:7`,
		`    dial: 4s # HOLDFAST_DIAL_TIMEOUT`,
		`    drain: 5s # --drain-timeout`,
		`    idle: 2m # default`,
		`    - cert: /c1 # HOLDFAST_TLS_CERT`,
		`      key: /k2 # HOLDFAST_TLS_CERT`,
		`  listen: 127.0.0.1:1112 # ` + file + `:12`,
		`  format: json # HOLDFAST_LOG_FORMAT`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
	parse := func(content string) settings {
		s, _, err := parseSettings("shown", []byte(content))
		if err != nil {
			t.Fatalf("what config show printed cannot be read: %v", err)
		}
		return s
	}
	_, again, _ := holdfast(t, nil, "config", "show", mustConfig(t, out))
	if d := cmp.Diff(parse(out), parse(again)); d != "" {
		t.Errorf("what was shown means something else (-first +again):\n%s", d)
	}
}

// TestConfigFaults: what is wrong with a file is said with line and column, by config check and by the gateway, in the same words.
func TestConfigFaults(t *testing.T) {
	t.Parallel()
	one, two := testserver.NewCertificates(t), testserver.NewCertificates(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() }) // after the subtests, which run in parallel
	short := mustConfig(t, "too short")
	const up = "gateway:\n  listen: 127.0.0.1:0\n  upstreams: [{id: a, url: 'http://127.0.0.1:1'}]\n"
	for _, test := range []struct {
		name, content string
		want          string // after the file's name
		runOnly       bool   // config check connects to nothing and takes no address
	}{
		{"unknown key", up + "  time_outs: {dial: 1s}\n", `:4:3: gateway: unknown key "time_outs", did you mean "timeouts"\?`, false},
		{"unknown key within", up + "  timeouts:\n    dail: 1s\n", `:5:5: gateway.timeouts: unknown key "dail", did you mean "dial"\?`, false},
		{"not a time", up + "  timeouts: {dial: 2}\n", `:4:20: gateway.timeouts.dial: want a time such as 30s`, false},
		{"negative", up + "  timeouts: {dial: -2s}\n", `:4:14: gateway.timeouts.dial: dial timeout -2s is negative`, false},
		{"not YAML", up + "\tadmin:\n", `:4:1: found character`, false},
		{"no upstream", "gateway:\n  affinity: {kind: ip}\n", `:1:1: gateway.upstreams: no upstream: give the URL`, false},
		{"duplicate ID", "gateway:\n  upstreams:\n    - id: a\n      url: http://h:1\n    - {id: a, url: 'http://h:2'}\n",
			`:5:8: gateway.upstreams\[1\].id: upstreams 1 and 2 have the same ID "a"`, false},
		{"no URL", "gateway:\n  upstreams:\n    - id: a\n      url: 10.0.0.1\n", `:4:7: gateway.upstreams\[0\].url: upstream 1: .*want http://host:port`, false},
		{"password in a URL", "gateway:\n  upstreams: [{url: 'http://ada:hunter2@h'}]\n", `:2:16: gateway.upstreams\[0\].url: .*remove it`, false},
		{"HTTP/2 without TLS", "gateway:\n  upstreams:\n    - url: http://h\n      http2: true\n", `:4:7: gateway.upstreams\[0\].http2: .*https`, false},
		{"affinity", up + "  affinity:\n    kind: sticky\n", `:5:5: gateway.affinity.kind: affinity "sticky" unknown`, false},
		{"network", up + "  trusted_proxies:\n    addresses: [10.0.0.0/99]\n", `:5:5: gateway.trusted_proxies.addresses: "10.0.0.0/99": want an address`, false},
		{"key of another certificate", up + "  certificates:\n    - cert: " + one.CertFile + "\n      key: " + two.KeyFile + "\n",
			`:6:7: gateway.certificates\[0\].key: certificate .* is not for the key in .*: give the key that it was made with`, false},
		{"no certificate file", up + "  certificates: [{cert: /none.pem, key: " + one.KeyFile + "}]\n", `:4:19: gateway.certificates\[0\].cert: .*/none.pem: no such file`, false},
		{"half a certificate", up + "  certificates: [{cert: " + one.CertFile + "}]\n", `:4:3: gateway.certificates: certificate 1: give both`, false},
		{"no authorities", up + "  upstream_tls: {ca_file: " + short + "}\n", `:4:18: gateway.upstream_tls.ca_file: .* has no certificate`, false},
		{"key file", up + "  affinity: {kind: cookie, key_file: " + short + "}\n", `:4:28: gateway.affinity.key_file: .*not a key: want 32 random bytes`, false},
		{"token file", up + "admin: {token_file: " + short + "}\n", `:4:9: admin.token_file: .*holds 9 characters: want 20`, false},
		{"admin for everybody", up + "admin:\n  listen: :9180\n", `:5:3: admin.listen: ":9180" can be reached from other machines`, false},
		{"access log format", up + "  access_log:\n    format: xml\n", `:5:5: gateway.access_log.format: access log format "xml" unknown \(want json, combined\)`, false},
		{"log format", up + "log: {format: xml}\n", `:4:7: log.format: "xml": want text or json`, false},
		{"several at once", up + "  affinity: {kind: x}\n  timeouts: {dial: -1s}\n  queue: {max: -7}\n", `:4:14: .*"x" unknown.*:5:14: .*negative.*:6:11: `, false},
		{"port in use", strings.Replace(up, "127.0.0.1:0", taken.Addr().String(), 1), `:2:3: gateway.listen: address 127.0.0.1:\d+ is in use: stop what listens there, or choose another`, true},
		{"admin port in use", up + "admin: {listen: '" + taken.Addr().String() + "'}\n", `:4:9: admin.listen: address 127.0.0.1:\d+ is in use`, true},
		{"access log in no directory", up + "  access_log: {path: /no/such/directory/log}\n", `:4:16: gateway.access_log.path: access log: .*no such file`, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			file := mustConfig(t, test.content)
			want := regexp.QuoteMeta(file) + test.want
			if !test.runOnly {
				err := configCheckCmd{File: file}.Run()
				if err == nil || !regexp.MustCompile(want).MatchString(oneLine(err)) || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("config check: %v, want %s", err, want)
				}
			}
			switch test.name { // as programs those that stand for the others
			case "unknown key", "duplicate ID", "several at once":
				wantRefusal(t, []string{"config", "check", file}, nil, 1, "holdfast: .*"+want, "hunter2")
				fallthrough
			case "key of another certificate", "port in use", "admin port in use", "access log in no directory":
				wantRefusal(t, []string{"gateway", "--config", file}, nil, 1, "holdfast: .*"+want, "hunter2")
			}
		})
	}
	t.Run("upstream is the gateway itself", func(t *testing.T) {
		t.Parallel()
		own := testserver.FreeAddr(t)
		file := mustConfig(t, fmt.Sprintf("gateway:\n  listen: %s\n  upstreams:\n    - url: http://127.0.0.1:1\n    - id: b\n      url: http://%[1]s\n", own))
		status, _, errs := holdfast(t, nil, "gateway", "--config", file)
		if want := file + ":6:7: gateway.upstreams[1].url: upstream b, http://" + own + ", is an address of this gateway itself"; status != 1 || !strings.Contains(errs, want) {
			t.Errorf("status %d:\n%s\nwant %s", status, errs, want)
		}
	})
	t.Run("config of flags", func(t *testing.T) {
		wantRefusal(t, []string{"config", "show", "--listen", "x", "--dial-timeout", "1"}, nil, 2, "--dial-timeout: want a time", "hunter2")
		wantRefusal(t, []string{"gateway", "--upstream", "http://h", "--log-format", "xml"}, nil, 2, `--log-format: .*want text or json`, "hunter2")
	})
}

// TestSettingsLocated: an error of the library is said at the setting that sets the field.
func TestSettingsLocated(t *testing.T) {
	s, layers, err := parseSettings("f", []byte("gateway:\n  upstreams:\n    - url: http://h\n  balance:\n    policy: x\n"))
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{
		"Balance":          "f:5:5: gateway.balance.policy: wrong",
		"Upstreams":        "f:2:3: gateway.upstreams: wrong",
		"Upstreams[0].URL": "f:3:7: gateway.upstreams[0].url: wrong",
		"Upstreams[0].ID":  "f:3:7: gateway.upstreams[0].id: wrong",
		"Cookie.Name":      "f:1:1: gateway.affinity.cookie: wrong",
		"NoSetting":        "f:1:1: gateway: wrong",
	} {
		if err := s.locate(layers, &gateway.ConfigError{Field: field, Err: fmt.Errorf("wrong")}); err.Error() != want {
			t.Errorf("locate(%s) = %v, want %s", field, err, want)
		}
	}
	if v := configfile.Value(&s, "gateway.balance.policy"); v != "x" {
		t.Errorf("Value = %v", v)
	}
}
