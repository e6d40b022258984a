package mysql_test

import (
	"net"
	"regexp"
	"testing"

	"github.com/holdfast-sessions/holdfast/store/sqlstore/mysql"
)

var tableName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,47}$`)

// FuzzURL proves that whatever a URL says, it is refused or names hosts that can be dialled and a table whose name can be
// written into a statement.
func FuzzURL(f *testing.F) {
	for _, url := range []string{
		"mysql://u:p@h/db", "mysql://u:p@h1,h2:1,[::1]:2/db?table=t&sweep=never&max_conns=3&prepare=false", "mysql://u@h/db?tls=verify&server_name=x",
		"mysql://u:%zz@h/db", "mysql://u@h:99999/db", "mysql://u@h/db?table=a'b", "mysql:", "", "mysql://u@h/db?connect_timeout=1s&connect_timeout=2s",
	} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		addrs, table, err := mysql.Parse(url)
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
