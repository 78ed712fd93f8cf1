window.YTD.account.part0 = [
  {
    "account" : {
      "email" : "mira@mail.example",
      "createdVia" : "web",
      "username" : "mira_gardens",
      "accountId" : "77001",
      "createdAt" : "2015-03-02T09:10:11.000Z",
      "accountDisplayName" : "Mira's Garden"
    }
  }
]
