package memcached_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memcached"
)

// askPHP prints the number of the server that PHP's memcached extension (libmemcached) picks for each key.
const askPHP = `<?php
$in = json_decode(file_get_contents($argv[1]), true);
$m = new Memcached();
switch ($in['hash']) {
case 'ketama':         $m->setOption(Memcached::OPT_LIBKETAMA_COMPATIBLE, true); break;
case 'consistent-md5': $m->setOption(Memcached::OPT_HASH, Memcached::HASH_MD5); // and
case 'consistent':     $m->setOption(Memcached::OPT_DISTRIBUTION, Memcached::DISTRIBUTION_CONSISTENT); break;
}
$n = []; $servers = [];
foreach ($in['hosts'] as $i => $h) {
	$servers[] = [$h['Name'], (int)$h['Port'], $h['Weight']];
	$n[$h['Name'] . ' ' . $h['Port']] = $i;
}
$m->addServers($servers);
$out = [];
foreach ($in['keys'] as $key) {
	$s = $m->getServerByKey($key);
	$out[] = $n[$s['host'] . ' ' . $s['port']];
}
echo json_encode($out);
`

// php asks PHP, or ends the test.
func php(t *testing.T, hash string, hosts []memcached.Host, keys []string) []int {
	t.Helper()
	path, err := exec.LookPath("php")
	if err == nil {
		err = exec.Command(path, "-r", "exit(class_exists('Memcached') ? 0 : 1);").Run()
	}
	if err != nil {
		message := "NOT RUN: " + t.Name() + " needs PHP's memcached extension (Debian: apt-get install php-cli php-memcached)"
		if os.Getenv("CI") == "true" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	script, in := filepath.Join(t.TempDir(), "ask.php"), filepath.Join(t.TempDir(), "in.json")
	question, err := json.Marshal(map[string]any{"hash": hash, "hosts": hosts, "keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{script: []byte(askPHP), in: question} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(path, script, in).Output()
	if err != nil {
		t.Fatalf("php: %v\n%s", err, out)
	}
	var servers []int
	if err := json.Unmarshal(out, &servers); err != nil || len(servers) != len(keys) {
		t.Fatalf("php answers for %d of %d keys: %v\n%.500s", len(servers), len(keys), err, out)
	}
	return servers
}

func keys(n int) []string {
	r := rand.New(rand.NewPCG(1, 2))
	keys := make([]string, n)
	for i := range keys {
		var id driver.ID
		for j := range id {
			id[j] = byte(r.Uint32())
		}
		keys[i] = key(id)
	}
	return keys
}

// TestRingAgreesWithPHP: both pick the same server, for 10,000 of 10,000 keys, whatever the way to pick.
func TestRingAgreesWithPHP(t *testing.T) {
	three := []memcached.Host{{"10.0.0.1", "11211", 1}, {"10.0.0.2", "11211", 1}, {"cache3.example", "11212", 1}}
	weighted := []memcached.Host{{"10.0.0.1", "11211", 1}, {"10.0.0.2", "11211", 2}, {"cache3.example", "11212", 1}}
	odd := []memcached.Host{{"::1", "11211", 7}, {"::1", "22122", 13}, {"localhost", "11211", 3}}
	var seven []memcached.Host
	for i := range 7 {
		seven = append(seven, memcached.Host{Name: fmt.Sprintf("10.1.0.%d", i), Port: "11211", Weight: uint32(1 + i*i)})
	}
	tests := []struct {
		name  string
		hash  string
		hosts []memcached.Host
	}{
		{"ketama", "ketama", three},
		{"ketama, weighted", "ketama", weighted},
		{"ketama, odd weights and IPv6", "ketama", odd},
		{"ketama, seven weights", "ketama", seven},
		{"ketama, one server", "ketama", three[:1]},
		{"consistent", "consistent", three},
		{"consistent with MD5", "consistent-md5", three},
		{"modula", "modula", three},
	}
	keys := keys(10_000)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := memcached.Pick(tt.hash, tt.hosts, keys)
			want := php(t, tt.hash, tt.hosts, keys)
			same, load := 0, make([]int, len(tt.hosts))
			for i := range keys {
				load[got[i]]++
				if got[i] == want[i] {
					same++
				}
			}
			t.Logf("%d of %d keys on the same server; keys a server: %v", same, len(keys), load)
			if same != len(keys) {
				t.Errorf("%d of %d keys are on the server that PHP picks", same, len(keys))
			}
		})
	}
}

// A fourth server takes a quarter of the keys, and no other key moves; modulo, three quarters move. The second copy is
// where the key would be if its own server were taken out of the list.
func TestRingMoves(t *testing.T) {
	hosts := []memcached.Host{{"10.0.0.1", "11211", 1}, {"10.0.0.2", "11211", 1}, {"10.0.0.3", "11211", 1}, {"10.0.0.4", "11211", 1}}
	keys := keys(10_000)
	for _, hash := range memcached.Hashes {
		before, second := memcached.Pick(hash, hosts[:3], keys)
		after, _ := memcached.Pick(hash, hosts, keys)
		moved, elsewhere := 0, 0
		for i := range keys {
			if before[i] == second[i] {
				t.Fatalf("%s: a key's second copy is on its first server", hash)
			}
			if after[i] != before[i] {
				if moved++; after[i] != 3 {
					elsewhere++
				}
			}
		}
		t.Logf("%s: a fourth server moves %d of %d keys", hash, moved, len(keys))
		if hash == "modula" {
			continue
		}
		if elsewhere > 0 || moved < 1500 || moved > 3500 {
			t.Errorf("%s: a fourth server moves %d of %d keys, %d of them elsewhere; want about a quarter, and none", hash, moved, len(keys), elsewhere)
		}
		without, _ := memcached.Pick(hash, hosts[1:3], keys)
		for i := range keys {
			if before[i] == 0 && without[i]+1 != second[i] {
				t.Fatalf("%s: the second copy is on server %d; without the first, the key is on %d", hash, second[i], without[i]+1)
			}
		}
	}
}
