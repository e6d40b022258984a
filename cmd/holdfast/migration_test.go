package main

import (
	"os"
	"regexp"
	"testing"
)

var yamlBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```")

// The configuration files of docs/migrating-to-gateway.md can be used as they are.
func TestMigrationFiles(t *testing.T) {
	doc, err := os.ReadFile("../../docs/migrating-to-gateway.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := yamlBlock.FindAllSubmatch(doc, -1)
	if len(blocks) != 4 {
		t.Fatalf("%d files, want one each for nginx, HAProxy, Traefik and Caddy", len(blocks))
	}
	t.Chdir(t.TempDir())
	if err := os.WriteFile("gateway.key", []byte("3f1c7a5be09d42684c8fb21e6ad3970512ce84fb6a0d39e7715b28c4f06d9ea3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, b := range blocks {
		if err := os.WriteFile("holdfast.yaml", b[1], 0o600); err != nil {
			t.Fatal(err)
		}
		s, layers, err := readSettings("holdfast.yaml")
		if err == nil {
			_, err = new(loader).parts(&s, layers)
		}
		if err != nil {
			t.Errorf("file %d: %v\n%s", i+1, err, b[1])
		}
	}
}
