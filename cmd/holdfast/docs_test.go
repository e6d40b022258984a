package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/gateway/metrics"
)

func mustRead(t testing.TB, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"..", ".."}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestGatewayDocs: docs/commands/gateway.md has every flag and every metric, and no others.
func TestGatewayDocs(t *testing.T) {
	doc := mustRead(t, "docs", "commands", "gateway.md")
	var c gatewayRunCmd
	parser := kong.Must(&c)
	var flags []string
	for _, f := range parser.Model.Flags {
		if f.Name != "help" {
			flags = append(flags, f.Name)
		}
	}
	table := doc[strings.Index(doc, "## Flags"):strings.Index(doc, "## The key")]
	var documented []string
	for _, row := range regexp.MustCompile(`(?m)^\| (.*?) \|`).FindAllStringSubmatch(table, -1) {
		for _, m := range regexp.MustCompile("`--([a-z-]+)`").FindAllStringSubmatch(row[1], -1) {
			documented = append(documented, m[1])
		}
	}
	slices.Sort(flags)
	slices.Sort(documented)
	if !slices.Equal(flags, documented) {
		t.Errorf("flags\n%q, documented are\n%q", flags, documented)
	}

	g, err := gateway.New(gateway.Config{Upstreams: []gateway.Upstream{{URL: "http://127.0.0.1:1"}}})
	if err != nil {
		t.Fatal(err)
	}
	m := metrics.New()
	m.OnRequest(gateway.Request{Status: 200})
	admin := newAdminServer(t.Context(), g, m, gateway.AdminConfig{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.Of(g), admin.reloads)
	all, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	table = doc[strings.Index(doc, "| metric |"):strings.Index(doc, "## systemd")]
	var names []string
	for _, family := range all {
		names = append(names, strings.TrimPrefix(family.GetName(), "holdfast_gateway_"))
	}
	documented = nil
	for _, row := range regexp.MustCompile(`(?m)^\| (.*?) \|`).FindAllStringSubmatch(table, -1) {
		for _, m := range regexp.MustCompile("`([a-z_]+)(\\{[a-z,]+\\})?`").FindAllStringSubmatch(row[1], -1) {
			documented = append(documented, m[1])
		}
	}
	slices.Sort(documented)
	if !slices.Equal(names, documented) {
		t.Errorf("metrics\n%q, documented are\n%q", names, documented)
	}
}

// TestConfigDocs: what the documents show as configuration files can be read.
func TestConfigDocs(t *testing.T) {
	n := 0
	block := regexp.MustCompile("(?s:```yaml\n(.*?)```)|(?m:((?:^    .*\n|^\n)+))")
	for _, path := range [][]string{{"docs", "migrating-to-gateway.md"}, {"docs", "gateway.md"}, {"docs", "commands", "config.md"}} {
		for _, m := range block.FindAllStringSubmatch(mustRead(t, path...), -1) {
			content := m[1]
			if content == "" {
				content = regexp.MustCompile(`(?m)^    `).ReplaceAllString(m[2], "")
			}
			if content = strings.TrimLeft(content, "\n"); !regexp.MustCompile(`^(#.*\n)*(gateway|admin|log):`).MatchString(content) {
				continue
			}
			n++
			s, layers, err := parseSettings(filepath.Join(path...), []byte(content))
			if err != nil {
				t.Errorf("%v\n%s", err, content)
				continue
			}
			config, err := s.config(layers)
			if err == nil && len(config.Upstreams) > 0 {
				config.Key = bytes.Repeat([]byte("ab"), keyBytes/2) // in the place of the file
				err = s.locate(layers, config.Validate())
			}
			if err != nil {
				t.Errorf("%v\n%s", err, content)
			}
		}
	}
	if n < 5 {
		t.Errorf("%d configuration files in the documents, want 5", n)
	}
}

// TestUnit: the systemd unit runs what there is.
func TestUnit(t *testing.T) {
	unit := mustRead(t, "deploy", "holdfast-gateway.service")
	m := regexp.MustCompile(`(?m)^ExecStart=/usr/bin/holdfast (.*)$`).FindStringSubmatch(unit)
	if m == nil || !strings.Contains(unit, "\nType=notify-reload\n") {
		t.Fatalf("no ExecStart or Type in\n%s", unit)
	}
	file := mustConfig(t, "gateway:\n  upstreams: http://h\n")
	args := strings.Fields(strings.Replace(m[1], "/etc/holdfast/gateway.yaml", file, 1))
	wantRefusal(t, args, nil, 1, regexp.QuoteMeta(file)+`:2:14: gateway.upstreams: want a list`, "hunter2")
}
