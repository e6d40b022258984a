package gateway

import (
	"fmt"
	"net/http"
)

// Origin says where r comes from.
func Origin(c Config, r *http.Request) string {
	o := c.originOf(r)
	return fmt.Sprintf("%s [%s] %s %s", o.client, o.chain, o.proto, o.host)
}
